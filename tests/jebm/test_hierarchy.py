import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy import stats

from jebm.hierarchy import (
    given,
    inverse_transport,
    log_prior,
    log_standard_normal,
    top_down,
    transport,
)
from tests.models import random_latents, random_params, small_model


def descend(model, params, pick, num, temperature=1.0):
    """(latents, priors) of the top-down pass."""

    def run(backbone):
        return top_down(backbone, num, pick, temperature)[:2]

    return nn.apply(run, model.backbone)(params.backbone)


def prior_by_hand(params, i, context):
    """Location and scale of layer i from the raw parameters, in NumPy."""
    dense = jax.tree.map(np.asarray, params.backbone["params"][f"priors_{i}"])
    hidden = np.tanh(context @ dense["Dense_0"]["kernel"] + dense["Dense_0"]["bias"])
    out = hidden @ dense["Dense_1"]["kernel"] + dense["Dense_1"]["bias"]
    loc, raw = np.split(out, 2, axis=-1)
    return loc, np.exp(0.7 * np.tanh(raw / 0.7))


@pytest.mark.slow
@pytest.mark.parametrize("conditioning", ["next", "above"])
def test_log_prior_is_scipys_product_of_conditionals(conditioning, x64):
    model = small_model(dims=(3, 2, 4), conditioning=conditioning)
    params = random_params(model, dtype=jnp.float64)
    z = random_latents(model, 5, dtype=jnp.float64)
    contexts = {
        "next": [z[1], z[2]],
        "above": [np.concatenate([z[1], z[2]], axis=1), z[2]],
    }[conditioning]
    expected = stats.norm.logpdf(z[2]).sum(1)
    for i, context in enumerate(contexts):
        loc, scale = prior_by_hand(params, i, np.asarray(context))
        expected = expected + stats.norm.logpdf(z[i], loc, scale).sum(1)
    latents, priors = descend(model, params, given(z), 5)
    np.testing.assert_allclose(log_prior(latents, priors), expected, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [(3,), (3, 2), (2, 3, 1)])
@pytest.mark.parametrize("conditioning", ["next", "above"])
def test_inverse_transport_undoes_transport(dims, conditioning, x64):
    model = small_model(dims=dims, conditioning=conditioning)
    params = random_params(model, dtype=jnp.float64)
    eps = random_latents(model, 4, dtype=jnp.float64)
    z, priors = descend(model, params, transport(eps), 4)
    for back, e in zip(inverse_transport(z, priors), eps, strict=True):
        np.testing.assert_allclose(back, e, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("conditioning", ["next", "above"])
def test_transport_changes_the_density_by_its_jacobian(conditioning, x64):
    model = small_model(dims=(2, 1, 2), conditioning=conditioning)
    params = random_params(model, dtype=jnp.float64)
    eps = random_latents(model, 1, dtype=jnp.float64)
    flat, unravel = ravel_pytree(eps)

    def transported(flat):
        z, _ = descend(model, params, transport(unravel(flat)), 1)
        return ravel_pytree(z)[0]

    _, log_jacobian = np.linalg.slogdet(jax.jacfwd(transported)(flat))
    z, priors = descend(model, params, transport(eps), 1)
    np.testing.assert_allclose(
        log_prior(z, priors), log_standard_normal(eps) - log_jacobian, rtol=1e-12
    )


@pytest.mark.slow
def test_the_bottom_layer_reads_only_the_next_or_all_layers_above():
    for conditioning, depends in [("next", False), ("above", True)]:
        model = small_model(dims=(1, 1, 1), conditioning=conditioning)
        params = random_params(model)
        z = random_latents(model, 1)
        moved = (z[0], z[1], z[2] + 1)
        _, priors = descend(model, params, given(z), 1)
        _, priors_moved = descend(model, params, given(moved), 1)
        assert (
            float(priors[0].loc[0, 0]) != float(priors_moved[0].loc[0, 0])
        ) is depends


def test_temperature_scales_every_sigma():
    model = small_model(dims=(2, 2))
    params = random_params(model)
    z = random_latents(model, 3)
    _, priors = descend(model, params, given(z), 3)
    _, cold = descend(model, params, given(z), 3, temperature=0.5)
    for p, c in zip(priors, cold, strict=True):
        np.testing.assert_array_equal(p.loc, c.loc)
        np.testing.assert_allclose(0.5 * p.scale, c.scale, rtol=1e-6)


def test_each_scale_keeps_its_floor_and_ceiling():
    model = small_model(dims=(2, 2))
    params = random_params(model, scale=100.0)
    _, priors = descend(model, params, given(random_latents(model, 50)), 50)
    assert np.all(priors[0].scale >= np.exp(-0.7001))
    assert np.all(priors[0].scale <= np.exp(0.7001))
