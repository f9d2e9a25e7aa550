"""The axes that annotations promise are those of what comes and goes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped

import jebm
from jebm import types
from tests.models import random_params, small_model

KEY = jax.random.key(0)
SHORT = jebm.Langevin(num_steps=2, step_size=0.1)
X = np.full((3, 2, 2, 1), 0.5, np.float32)


def checked(function):
    """`function`, whose arguments and results are held against its annotations."""
    return jaxtyped(function, typechecker=beartype)


@pytest.fixture(scope="module")
def model():
    return small_model((3, 2), image_shape=(2, 2, 1), encoder_widths=(4,))


@pytest.fixture(scope="module")
def params(model):
    return random_params(model)


def latents(model, num=3):
    return tuple(jnp.zeros((num, *shape)) for shape in model.backbone.latent_shapes)


CALLS = {
    "init": lambda f, m, p: f(KEY, m),
    "energy": lambda f, m, p: f(m, p, latents(m)),
    "sample": lambda f, m, p: f(KEY, m, p, 2, kernel=SHORT),
    "posterior_sample": lambda f, m, p: f(KEY, m, p, X, kernel=SHORT),
    "reconstruct": lambda f, m, p: f(KEY, m, p, jnp.asarray(X)),
    "prior_logdensity": lambda f, m, p: f(m, p, latents(m)),
    "joint_logdensity": lambda f, m, p: f(m, p, X, latents(m)),
    "logdensity_fn": lambda f, m, p: f(m, p, X[0]),
    "scores.score": lambda f, m, p: f(KEY, m, p, X, 1, kernel=SHORT),
    "scores.score_terms": lambda f, m, p: f(KEY, m, p, X),
    "scores.log_likelihood_ratio": lambda f, m, p: f(KEY, m, p, X, 1),
    "scores.elbo": lambda f, m, p: f(KEY, m, p, X, log_z=0.0),
    "scores.importance_log_weights": lambda f, m, p: f(KEY, m, p, X, 5),
    "partition.log_z": lambda f, m, p: f(
        KEY, m, p, num_particles=4, num_temperatures=2
    ),
    "partition.log_z_given": lambda f, m, p: f(
        KEY, m, p, latents(m)[1:], num_particles=4, num_temperatures=2
    ),
    "partition.log_likelihood": lambda f, m, p: f(
        KEY, m, p, X, log_z=0.0, num_particles=4, num_temperatures=2
    ),
    "partition.check_log_z": lambda f, m, p: f(
        KEY, m, p, latents(m), num_particles=4, num_temperatures=2
    ),
    "partition.tune": lambda f, m, p: f(KEY, m, p, x=X, num_temperatures=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_calls_keep_what_their_annotations_promise(name, model, params):
    function = jebm
    for part in name.split("."):
        function = getattr(function, part)
    CALLS[name](checked(function), model, params)


def test_log_density_keeps_what_it_promises(model, params):
    for x in (None, X[0]):
        logdensity = jebm.logdensity_fn(model, params, x)
        position = checked(jebm.LogDensity.init)(logdensity, KEY)
        for name in ("__call__", "potential", "latents", "image"):
            method = checked(getattr(jebm.LogDensity, name))
            method(logdensity, position)
            jax.jit(functools.partial(method, logdensity))(position)


def test_what_is_wrong_is_found(model, params):
    """The checks can fail: for an argument, and for a result."""
    with pytest.raises(TypeCheckError, match="parameter 'latents'"):
        checked(jebm.prior_logdensity)(model, params, latents(model)[0])

    def wrong(x: types.Images) -> types.PerExample:
        return jnp.sum(x, axis=(2, 3))

    with pytest.raises(TypeCheckError, match="return"):
        checked(wrong)(X)

    def other_batch(x: types.Images, z: types.Latents) -> types.PerExample:
        return jnp.zeros(4)

    with pytest.raises(TypeCheckError):
        checked(other_batch)(X, latents(model))
    with pytest.raises(TypeCheckError):
        checked(other_batch)(X, latents(model, num=4))


def test_every_public_function_with_arrays_tells_their_axes():
    """A new one is annotated with jebm.types, and entered in CALLS."""
    for name in jebm.__all__:
        thing = getattr(jebm, name)
        if isinstance(thing, type(jebm.sample)) and thing.__module__ != "jebm.spec":
            hints = thing.__annotations__.items()
            bare = [k for k, hint in hints if hint is jax.Array]
            assert not bare, f"{name}: {bare}"
