import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads
from scipy import stats

import jebm
from jebm.chains import decode, to_latents
from jebm.densities import logdensity
from jebm.hierarchy import given, log_standard_normal, top_down
from jebm.objectives import energy_gradient_penalty
from tests.models import random_latents, random_params, small_model

CASES = [
    (dims, conditioning)
    for dims in [(3,), (3, 2), (2, 1, 3)]
    for conditioning in ["next", "above"]
]


@pytest.fixture(params=CASES, ids=str)
def case(request, x64):
    dims, conditioning = request.param
    model = small_model(dims, conditioning, image_shape=(2, 2, 1))
    params = random_params(model, dtype=jnp.float64)
    eps = random_latents(model, 4, dtype=jnp.float64)
    x = jnp.asarray(np.random.default_rng(1).uniform(size=(4, 2, 2, 1)))
    return model, params, eps, x


@pytest.mark.slow
def test_joint_logdensity_is_the_sum_of_its_three_terms(case):
    model, params, z, x = case
    mean = decode(model, params, z)
    log_likelihood = stats.norm.logpdf(x, mean, 0.3).reshape(4, -1).sum(1)
    _, priors, _ = nn.apply(lambda b: top_down(b, 4, given(z)), model.backbone)(
        params.backbone
    )
    log_prior = sum(
        stats.norm.logpdf(z_i, p.loc, p.scale).sum(1)
        for z_i, p in zip(z, priors, strict=True)
    )
    energy = jebm.energy(model, params, z)
    np.testing.assert_allclose(
        jebm.prior_logdensity(model, params, z), log_prior - energy, rtol=1e-10
    )
    np.testing.assert_allclose(
        jebm.joint_logdensity(model, params, x, z),
        log_likelihood + log_prior - energy,
        rtol=1e-10,
    )


def test_energy_is_minus_the_sum_of_one_network_per_layer(case):
    model, params, z, _ = case
    per_layer = model.energy.apply(params.energy, z, method="per_layer")
    np.testing.assert_allclose(jebm.energy(model, params, z), sum(per_layer))
    for i, energy_i in enumerate(per_layer):
        moved = tuple(z_j + float(j != i) for j, z_j in enumerate(z))
        again = model.energy.apply(params.energy, moved, method="per_layer")
        np.testing.assert_array_equal(again[i], energy_i)


def test_joint_energy_is_minus_one_network_of_all_layers(x64):
    spec = {"name": "joint", "widths": (6,), "activation": "tanh"}
    model = small_model((3, 2), energy=spec)
    params = random_params(model, dtype=jnp.float64)
    z = random_latents(model, 4, dtype=jnp.float64)
    network = jax.tree.map(np.asarray, params.energy["params"]["f"])
    first, last = network["Dense_0"], network["Dense_1"]
    hidden = np.tanh(np.concatenate(z, axis=1) @ first["kernel"] + first["bias"])
    expected = -(hidden @ last["kernel"])[:, 0]
    np.testing.assert_allclose(jebm.energy(model, params, z), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["layerwise", "joint"])
def test_layers_interact_in_the_joint_energy_alone(name, x64):
    spec = {"name": name, "widths": (6,), "activation": "tanh"}
    model = small_model((3, 2), energy=spec)
    params = random_params(model, dtype=jnp.float64)
    z = random_latents(model, 1, dtype=jnp.float64)
    hessian = jax.hessian(lambda z: jebm.energy(model, params, z)[0])(z)
    interaction = np.abs(hessian[0][1]).max()
    assert interaction == 0 if name == "layerwise" else interaction > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("with_image", [False, True])
def test_eps_and_z_densities_are_equal_up_to_the_jacobian(case, with_image):
    model, params, eps, x = case
    x = x if with_image else None
    z = to_latents(model, params, eps, "eps")
    in_eps = logdensity(model, params, eps, space="eps", x=x)
    in_z = logdensity(model, params, z, space="z", x=x)

    def log_jacobian(eps):
        flat, unravel = ravel_pytree(eps)

        def transported(flat):
            one = jax.tree.map(lambda e: e[None], unravel(flat))
            return ravel_pytree(to_latents(model, params, one, "eps"))[0]

        return jnp.linalg.slogdet(jax.jacfwd(transported)(flat))[1]

    np.testing.assert_allclose(in_eps, in_z + jax.vmap(log_jacobian)(eps), rtol=1e-10)
    no_jacobian = logdensity(model, params, eps, space="eps_no_jacobian", x=x)
    np.testing.assert_allclose(no_jacobian, in_z, rtol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("space", ["eps", "z", "eps_no_jacobian"])
@pytest.mark.parametrize("with_image", [False, True])
def test_gradients_match_finite_differences(case, space, with_image):
    model, params, position, x = case
    x = x if with_image else None

    def total(params, position):
        return logdensity(model, params, position, space=space, x=x).sum()

    check_grads(total, (params, position), order=1, modes=["rev"], rtol=1e-6)


def test_energy_zero_is_the_gaussian_hierarchy(case):
    model, params, eps, _ = case
    fresh = jebm.init(jax.random.key(0), model)  # energies start at zero
    zero = jebm.Params(
        params.backbone, jax.tree.map(lambda p: p.astype(float), fresh.energy)
    )
    gaussian = small_model(
        model.backbone.latent_dims,
        model.backbone.conditioning,
        model.image_shape,
        energy=None,
    )
    for space in ("eps", "z"):
        np.testing.assert_array_equal(
            logdensity(model, zero, eps, space=space),
            logdensity(gaussian, jebm.Params(params.backbone, {}), eps, space=space),
        )
    np.testing.assert_array_equal(
        logdensity(model, zero, eps, space="eps"), log_standard_normal(eps)
    )


def test_the_decoder_is_not_called_without_an_image(case):
    model, params, eps, _ = case
    broken = jax.tree.map(lambda p: p, params)
    decoder = broken.backbone["params"]["decoder"]
    broken.backbone["params"]["decoder"] = jax.tree.map(
        lambda p: jnp.full_like(p, jnp.nan), decoder
    )
    assert np.all(np.isfinite(logdensity(model, broken, eps, space="eps")))


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        ((jnp.ones((4, 3)),), "latents must be a tuple of 2 layers"),
        (
            (jnp.ones((4, 3)), jnp.ones((4, 3))),
            r"latents\[1\] must have shape \(4, 2\)",
        ),
        (
            (jnp.ones((4, 3)), jnp.ones((5, 2))),
            r"latents\[1\] must have shape \(4, 2\)",
        ),
        ((jnp.ones(3), jnp.ones(2)), r"latents\[0\] must have shape \(3, 3\)"),
        ("ab", "latents must be a tuple of 2 layers"),
        ((jnp.ones((0, 3)), jnp.ones((0, 2))), r"shape \(1, 3\), got float32\[0, 3\]"),
        ((jnp.ones((4, 3), int), jnp.ones((4, 2))), r"latents\[0\] must be floating"),
    ],
)
def test_latents_that_do_not_fit_are_refused(latents, message):
    model = small_model((3, 2))
    with pytest.raises(ValueError, match=message):
        jebm.prior_logdensity(model, random_params(model), latents)


def test_energy_refuses_another_number_of_layers():
    model = small_model((3, 2))
    with pytest.raises(ValueError, match="latents must be a tuple of 2 layers, got 1"):
        jebm.energy(model, random_params(model), (jnp.ones((4, 3)),))


NVAE = {
    "image_shape": (16, 16, 1),
    "backbone": {
        "name": "nvae", "groups": (2, 1), "latent_channels": 2, "width": 8,
        "encoder_width": 4, "preprocess_cells": 1, "postprocess_cells": 1,
        "encoder_cells": 1, "decoder_cells": 1, "num_flows": 1,
    },
    "energy": {"name": "conv", "channels": 4, "widths": (8,)},
    "likelihood": {"name": "bernoulli"},
    "chains": {"posterior": {"start": "encoder", "num_steps": 0}},
}  # fmt: skip


@pytest.mark.slow
def test_rematerialised_layers_give_the_same_gradients_and_keep_less():
    model = jebm.build(NVAE)
    params = random_params(model, scale=0.1)
    eps = random_latents(model, 8)
    found, held = [], []
    for remat in (False, True):
        same = jebm.build(NVAE | {"remat": remat})

        def total(eps, params, same=same):
            penalty = energy_gradient_penalty(same, params, eps).sum()
            return logdensity(same, params, eps, space="eps").sum() + penalty

        found.append(jax.jit(jax.grad(total, argnums=(0, 1)))(eps, params))
        residuals = jax.eval_shape(
            lambda eps, same=same: jax.vjp(
                lambda eps: logdensity(same, params, eps, space="eps"), eps
            )[1],
            eps,
        )
        held.append(sum(leaf.size for leaf in jax.tree.leaves(residuals)))
    for kept, again in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(again, kept, rtol=1e-3, atol=1e-3)
    assert any(np.abs(leaf).max() > 1 for leaf in jax.tree.leaves(found))
    assert held[1] < held[0] / 2


def test_remat_is_true_or_false():
    with pytest.raises(ValueError, match="remat must be True or False, got 'yes'"):
        jebm.build({"image_shape": (8, 8, 1), "remat": "yes"})
