"""NVAE; its numbers are held against the official ones in tests/tools."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jebm
from jebm import objectives
from jebm.backbones import nvae
from jebm.chains import draw_noise
from jebm.hierarchy import (
    infer,
    inverse_transport,
    log_prior,
    log_standard_normal,
    top_down,
    transport,
)
from tests.models import random_latents
from tests.precision import enable_x64

BACKBONE = {
    "name": "nvae", "groups": (2, 1), "latent_channels": 1, "width": 2,
    "encoder_width": 3, "preprocess_cells": 1, "postprocess_cells": 1,
    "encoder_cells": 1, "decoder_cells": 1, "num_flows": 1, "padding": 1,
}  # fmt: skip
SPEC = {
    "image_shape": (6, 6, 1),
    "backbone": BACKBONE,
    "energy": None,
    "likelihood": {"name": "bernoulli"},
    "chains": {"posterior": {"start": "encoder", "num_steps": 0}},
}


@pytest.fixture(scope="module")
def small():
    """A model, and parameters that are all random, in float64."""
    with enable_x64(True):
        model = jebm.build(SPEC)
        params = jebm.init(jax.random.key(0), model)
        rng = np.random.default_rng(0)

        def draw(path, leaf):
            if path[-1].key == "var":
                return jnp.asarray(rng.uniform(0.5, 2.0, leaf.shape))
            return jnp.asarray(np.asarray(leaf) + 0.3 * rng.normal(size=leaf.shape))

        return model, jax.tree_util.tree_map_with_path(draw, params)


def quick(function):
    """Compiled, in haste."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def apply(model, params, function):
    return quick(nn.apply(function, model.backbone))(params.backbone)


@pytest.mark.slow
def test_shapes_top_prior_and_the_modules_of_inference(small, x64):
    model, params = small
    assert model.backbone.latent_shapes == ((4, 4, 1), (4, 4, 1), (2, 2, 1))
    eps = random_latents(model, 3, dtype=jnp.float64)

    def run(backbone):
        _, priors, state = top_down(backbone, 3, transport(eps))
        return priors, backbone.decode(state)

    priors, output = apply(model, params, run)
    assert output.shape == (3, 6, 6, 1)
    np.testing.assert_array_equal(priors[-1].loc, 0)
    np.testing.assert_allclose(priors[-1].scale, 1.01)
    inference = set(model.backbone.encoder_modules)
    modules = set(params.backbone["params"])
    assert inference < modules
    generator = {
        name: value
        for name, value in params.backbone["params"].items()
        if name not in inference
    }
    alone = params._replace(backbone=params.backbone | {"params": generator})
    np.testing.assert_array_equal(apply(model, alone, run)[1], output)


def test_transport_is_undone_and_changes_the_density_by_its_jacobian(small, x64):
    model, params = small
    eps = random_latents(model, 1, dtype=jnp.float64)
    flat, unravel = ravel_pytree(eps)

    def transported(flat):
        def run(backbone):
            return top_down(backbone, 1, transport(unravel(flat)))[:2]

        return nn.apply(run, model.backbone)(params.backbone)

    z, priors = quick(transported)(flat)
    for back, e in zip(inverse_transport(z, priors), eps, strict=True):
        np.testing.assert_allclose(back, e, atol=1e-10)
    jacobian = quick(jax.jacrev(lambda flat: ravel_pytree(transported(flat)[0])[0]))(
        flat
    )
    np.testing.assert_allclose(
        log_prior(z, priors),
        log_standard_normal(eps) - np.linalg.slogdet(jacobian)[1],
        rtol=1e-10,
    )


@pytest.mark.slow
def test_flow_keeps_volumes_and_each_shift_looks_back_alone(x64):
    flow = nvae.Flow(2, num_shifts=2, compute_dtype="float32")
    z = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 3, 2)))
    variables = flow.init(jax.random.key(0), z.astype(jnp.float32))
    variables = jax.tree.map(lambda a: np.asarray(a, np.float64) + 0.5, variables)

    def jacobian(num_shifts):
        shifts = nvae.Flow(2, num_shifts, compute_dtype="float32")
        run = quick(jax.jacrev(lambda z: shifts.apply(variables, z).ravel()))
        return np.asarray(run(z)).reshape(18, 18)

    first, both = jacobian(1), jacobian(2)
    np.testing.assert_allclose(np.linalg.slogdet(both)[1], 0, atol=1e-12)
    np.testing.assert_array_equal(np.triu(first, 1), 0)  # pixel by pixel, by channel
    np.testing.assert_array_equal(np.diag(first), 1)
    assert np.abs(np.tril(first, -1)).max() > 0.01
    assert np.abs(np.triu(both, 2)).max() > 1e-3  # the other order of pixels


@pytest.mark.slow
def test_log_q_is_the_density_of_what_is_drawn(small, x64):
    """By the noise: z is a map of it, and log q its density over the Jacobian."""
    model, params = small
    x = jnp.asarray(np.random.default_rng(1).uniform(size=(1, 6, 6, 1)))
    noise = draw_noise(jax.random.split(jax.random.key(3), 1), model, params)

    def drawn(backbone):
        latents, log_q, _, _ = infer(backbone, x, noise)
        return latents, log_q

    _, log_q = apply(model, params, drawn)
    top = len(log_q) - 1
    eps = noise[top][0]

    def posterior(eps):
        def run(backbone):
            features = backbone.encode(x)
            loc, log_scale = jnp.split(backbone.posteriors[top](features[top]), 2, -1)
            q = nvae._clamped(loc, log_scale)
            return backbone.flows[top](q.loc + q.scale * eps[None])

        return nn.apply(run, model.backbone)(params.backbone).ravel()

    jacobian = quick(jax.jacrev(posterior))(eps).reshape(eps.size, eps.size)
    noise = -0.5 * (eps**2).sum() - eps.size / 2 * np.log(2 * np.pi)
    expected = noise - np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(log_q[top][0], expected, rtol=1e-10)


@pytest.mark.slow
def test_statistics_are_of_the_batch_in_training_and_running_averages_elsewhere(
    small, x64
):
    model, params = small
    x = jnp.asarray(np.random.default_rng(2).uniform(size=(4, 6, 6, 1)))
    keys = jax.random.split(jax.random.key(0), 4)
    terms = quick(objectives.variational_terms)(model, params, x, keys)
    old = params.backbone["batch_stats"]
    new = terms.mutated["batch_stats"]
    assert jax.tree.structure(new) == jax.tree.structure(old)
    stem = apply(model, params, lambda b: b.stem(2 * jnp.pad(x, _PAD) - 1))
    cell = ("preprocess_0", "layers_0", "BatchNorm_0")
    found, before = new, old
    for name in cell:
        found, before = found[name], before[name]
    mean = 0.95 * before["mean"] + 0.05 * stem.mean((0, 1, 2))
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-10)
    var = 0.95 * before["var"] + 0.05 * stem.var((0, 1, 2))
    np.testing.assert_allclose(found["var"], var, rtol=1e-8)

    def encode(backbone):
        return backbone.encode(x)

    whole = apply(model, params, encode)
    x = x[:1]
    alone = apply(model, params, encode)
    for a, b in zip(alone, whole, strict=True):  # no example sees another
        np.testing.assert_allclose(a, b[:1], atol=1e-10)


_PAD = ((0, 0), (1, 1), (1, 1), (0, 0))


@pytest.mark.slow
def test_learning_reaches_every_parameter_and_tells_every_kernel(small, x64):
    model, params = small
    x = jnp.asarray(np.random.default_rng(2).uniform(size=(3, 6, 6, 1)))
    keys = jax.random.split(jax.random.key(0), 3)

    def loss(params):
        terms = objectives.variational_terms(model, params, x, keys)
        return terms.loss().mean(), terms.mutated["kernels"]

    grads, kernels = quick(jax.grad(loss, has_aux=True))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads.backbone["params"]):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
    for leaf in jax.tree.leaves(grads.backbone["batch_stats"]):
        np.testing.assert_array_equal(leaf, 0)
    convolutions = [
        leaf for leaf in jax.tree.leaves(params.backbone["params"]) if leaf.ndim == 4
    ]
    assert len(jax.tree.leaves(kernels)) == len(convolutions)


@pytest.mark.slow
def test_doubling_puts_corners_on_corners_and_is_linear_between(x64):
    x = jnp.arange(3.0)[None, None, :, None] * jnp.ones((1, 3, 3, 1))
    double = nvae.BilinearUp(1, "float32")
    identity = {"kernel": jnp.ones((1, 1, 1, 1)), "log_length": jnp.zeros(1)}
    y = double.apply({"params": {"Conv_0": identity}}, x)
    np.testing.assert_allclose(y[0, 0, :, 0], np.linspace(0, 2, 6), rtol=2e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": ()}, "groups must hold a positive number"),
        ({"groups": (2, 0)}, "groups must hold a positive number"),
        ({"width": 0}, "width must be an integer of at least 1"),
        ({"bits": 9}, "bits must be at most 8"),
        ({"padding": 0}, "6x6 is not divisible by 4"),
        ({"encoder_cells": 1.5}, "encoder_cells must be an integer"),
    ],
)
def test_network_that_cannot_be_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        jebm.build(SPEC | {"backbone": BACKBONE | changes})


def test_backbone_and_likelihood_see_the_same_bits():
    mixture = {"name": "logistic_mixture", "bits": 5}
    with pytest.raises(ValueError, match="same bits, got 8 and 5"):
        jebm.build(SPEC | {"likelihood": mixture})
