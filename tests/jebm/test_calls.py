"""What public calls cost: passes through the hierarchy, and waits for the device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jebm
from jebm import checks
from jebm.backbones import Vector
from tests.models import random_params, small_model

KEY = jax.random.key(0)
ENCODER = jebm.Langevin(num_steps=0, start="encoder")
MODE = jebm.Langevin(num_steps=0, start="mode")
SHORT = jebm.Langevin(num_steps=2, step_size=0.1)
X = np.full((3, 2, 2, 1), 0.5, np.float32)


def encoded_model(dims=(3, 2)):
    return small_model(dims, image_shape=(2, 2, 1), encoder_widths=(5,))


@pytest.fixture(scope="module")
def model():
    return encoded_model()


@pytest.fixture(scope="module")
def params(model):
    return random_params(model)


def passes_and_decodes(call, monkeypatch):
    """How often a call's program passes the bottom layer, and how often it decodes."""
    counts = {"merge": 0, "decode": 0}

    def counted(name, method):
        def wrapper(self, *arguments):
            counts[name] += name == "decode" or arguments[0] == 0
            return method(self, *arguments)

        return wrapper

    for name in counts:
        monkeypatch.setattr(Vector, name, counted(name, getattr(Vector, name)))
    # Of sizes that nothing else has traced, so that this is traced here.
    model = encoded_model((3, 1, 2))
    params = jax.eval_shape(functools.partial(jebm.init, model=model), KEY)
    checks.params(model, params)  # which traces `init`, once for a model
    counts.update(merge=0, decode=0)
    jax.clear_caches()
    jax.eval_shape(lambda params: call(model, params), params)
    return counts["merge"], counts["decode"]


@pytest.mark.parametrize(
    ("call", "passes", "decodes"),
    [
        (lambda m, p: jebm.posterior_sample(KEY, m, p, X, kernel=ENCODER), 1, 0),
        (lambda m, p: jebm.posterior_sample(KEY, m, p, X, kernel=MODE), 1, 0),
        (lambda m, p: jebm.reconstruct(KEY, m, p, X, kernel=ENCODER), 1, 1),
        (lambda m, p: jebm.sample(KEY, m, p, 2, prior="gaussian"), 1, 1),
        # The density that the chain follows, and the pass from where it ends.
        (lambda m, p: jebm.sample(KEY, m, p, 2, kernel=SHORT), 2, 1),
        (lambda m, p: jebm.reconstruct(KEY, m, p, X, kernel=SHORT), 2, 2),
        (lambda m, p: jebm.joint_logdensity(m, p, X, latents(m)), 1, 1),
    ],
    ids=["encoder", "mode", "reconstruct", "gaussian", "chain", "posterior", "density"],
)
def test_calls_pass_the_hierarchy_no_more_than_they_must(
    call, passes, decodes, monkeypatch
):
    assert passes_and_decodes(call, monkeypatch) == (passes, decodes)


def latents(model):
    return tuple(jnp.zeros((3, *shape)) for shape in model.backbone.latent_shapes)


CALLS = {
    "sample": lambda m, p: jebm.sample(KEY, m, p, 2, kernel=SHORT),
    "posterior_sample": lambda m, p: jebm.posterior_sample(KEY, m, p, X, kernel=SHORT),
    "reconstruct": lambda m, p: jebm.reconstruct(KEY, m, p, X),
    "prior_logdensity": lambda m, p: jebm.prior_logdensity(m, p, latents(m)),
    "joint_logdensity": lambda m, p: jebm.joint_logdensity(m, p, X, latents(m)),
    "score": lambda m, p: jebm.scores.score(KEY, m, p, X, k=1),
    "update": lambda m, p: update(m, p),
}
SEES_IMAGES = ("posterior_sample", "reconstruct", "joint_logdensity", "score")


@functools.cache
def learner(model):
    return jebm.second_stage(model, SHORT, optax.sgd(1e-2))


def update(model, params):
    state = learner(model).init(KEY, params.backbone)
    return learner(model).update(KEY, state, X)[0].params


@jax.jit
def slowly(x):
    """`x` itself, after seconds of work."""
    square = jnp.full((300, 300), 1 / 300)
    busy = jax.lax.fori_loop(0, 4000, lambda _, a: a @ square, square)
    return x + 0 * busy[0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_no_call_waits_for_the_device(name, model, params):
    """It returns before the parameters that it was given have been computed."""
    jax.block_until_ready((CALLS[name](model, params), slowly(1.0)))  # compiled
    dense = params.backbone["params"]["decoder"]
    bias = slowly(dense["Dense_0"]["bias"])
    late = {**dense, "Dense_0": {**dense["Dense_0"], "bias": bias}}
    late = {**params.backbone["params"], "decoder": late}
    found = CALLS[name](model, params._replace(backbone={"params": late}))
    assert not bias.is_ready()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("name", SEES_IMAGES)
def test_images_on_a_device_are_looked_at_once(name, model, params, monkeypatch):
    looked_at = []

    def counted(x, inner=checks._range):
        looked_at.append(x.shape)
        return inner(x)

    monkeypatch.setattr(checks, "_range", counted)
    monkeypatch.setitem(globals(), "X", jnp.asarray(X))
    CALLS[name](model, params)
    assert looked_at == [X.shape]


@pytest.mark.parametrize("name", SEES_IMAGES)
def test_images_may_be_closed_over_by_the_callers_jit(name, model, params):
    alone = CALLS[name](model, params)
    closed = jax.jit(lambda params: CALLS[name](model, params))(params)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(closed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_images_out_of_range_are_refused_inside_the_callers_jit(model, params):
    for wrong, words in ((X + 1, r"in \[1.5, 1.5\]"), (X * np.nan, "finite")):
        call = functools.partial(jebm.posterior_sample, KEY, model, params, wrong)
        with pytest.raises(ValueError, match=words):
            jax.jit(call)()


@pytest.mark.slow
def test_chains_hand_back_where_they_end(model, params):
    keys = jax.random.split(KEY, 4)
    for chain in (SHORT, jebm.MALA(3, 0.2), jebm.Langevin(3, 0.1, "z", "prior")):
        end = jebm.chains.run_chains(keys, model, params, chain)
        back = end.latents
        if chain.space != "z":
            back = jebm.chains.to_eps(model, params, back)
        for a, b in zip(end.position, back, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        x = jebm.chains.decode(model, params, end.latents)
        state = jebm.chains.decode(model, params, end.latents, end.state)
        np.testing.assert_allclose(x, state, rtol=1e-5, atol=1e-6)
