import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jebm
from jebm import energies
from jebm.chains import to_latents
from jebm.densities import logdensity
from jebm.energies import Conv, JointConv, State
from jebm.hierarchy import given, log_standard_normal, top_down
from tests.models import random_latents, random_params

MAPS = ((16, 16, 2), (8, 8, 1), (8, 8, 1), (2, 2, 3))


def latents(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=(3, *s)), jnp.float32) for s in shapes)


def random(energy, z):
    """Parameters of which none is zero."""
    params = energy.init(jax.random.key(0), z)
    return jax.tree.map(
        lambda a: a + 0.1 * jnp.cos(jnp.arange(a.size)).reshape(a.shape), params
    )


def interaction(energy, z, i, j):
    """Largest |d^2 E / dz_i dz_j|: 0 for a sum over layers."""
    params = random(energy, z)

    def grad(z):
        return jax.grad(lambda z: energy.apply(params, z).sum())(z)

    moved = list(z)
    moved[j] = moved[j] + 1.0
    return np.abs(grad(z)[i] - grad(tuple(moved))[i]).max()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Conv, JointConv])
def test_energy_is_zero_at_first_and_reads_every_layer(kind):
    energy, z = kind(channels=4, widths=(5,)), latents((*MAPS, (3,)))
    params = energy.init(jax.random.key(0), z)
    np.testing.assert_array_equal(energy.apply(params, z), 0)
    params = random(energy, z)
    grads = jax.jit(jax.grad(lambda z: energy.apply(params, z).sum()))(z)
    assert all(np.abs(g).max() > 0 for g in grads)
    alone = energy.apply(params, tuple(leaf[:1] for leaf in z))
    np.testing.assert_allclose(energy.apply(params, z)[:1], alone, rtol=1e-4)


def test_maps_are_halved_to_four_rows():
    energy, z = Conv(channels=4, widths=(5,)), latents((*MAPS, (3,)))
    params = energy.init(jax.random.key(0), z)["params"]
    found = {k: v["kernel"].shape for k, v in params.items() if "conv" in k}
    assert found == {
        "f1_conv_0": (4, 4, 2, 4),
        "f1_conv_1": (4, 4, 4, 4),
        "f2_conv_0": (4, 4, 1, 4),
        "f3_conv_0": (4, 4, 1, 4),
    }
    assert params["f4"]["Dense_0"]["kernel"].shape == (12, 5)
    joint = JointConv(channels=4, widths=(5,))
    params = joint.init(jax.random.key(0), z)["params"]
    found = {k: v["kernel"].shape for k, v in params.items() if "conv" in k}
    assert found == {
        "conv_0": (4, 4, 2, 4),  # 16 x 16
        "conv_1": (4, 4, 6, 4),  # 8 x 8, with the two maps there
        "conv_2": (4, 4, 4, 4),  # 4 x 4
    }
    assert params["f"]["Dense_0"]["kernel"].shape == (2 * 2 * (4 + 3) + 3, 5)


def test_layers_interact_in_the_joint_energy_alone():
    z = latents(((8, 8, 1), (4, 4, 2), (3,)))
    for j in (1, 2):
        assert interaction(Conv(4, (5,)), z, 0, j) == 0
        assert interaction(JointConv(4, (5,)), z, 0, j) > 1e-4
    terms = Conv(4, (5,))
    params = random(terms, z)
    parts = terms.apply(params, z, method=Conv.per_layer)
    np.testing.assert_allclose(sum(parts), terms.apply(params, z), rtol=1e-6)


@pytest.mark.parametrize("kind", [Conv, JointConv])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": 0}, "channels must be a positive integer"),
        ({"widths": ((5,),)}, "widths must be a tuple of integers"),
        ({"activation": "nope"}, "unknown activation 'nope'"),
    ],
)
def test_energy_that_cannot_be_is_refused(kind, changes, message):
    with pytest.raises(ValueError, match=message):
        kind(**changes)


BACKBONES = {
    "vector": {"latent_dims": (3, 2), "decoder_widths": (5,)},
    "above": {"latent_dims": (3, 2), "conditioning": "above"},
    "ladder": {"name": "ladder", "latent_shapes": ((4, 4, 2), (3,)), "width": 5},
    "nvae": {
        "name": "nvae", "groups": (1, 1), "latent_channels": 2, "width": 2,
        "encoder_width": 2, "preprocess_cells": 1, "postprocess_cells": 1,
        "encoder_cells": 1, "decoder_cells": 1,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_an_energy_of_the_state_is_that_of_what_the_decoder_reads(name, x64):
    spec = {"image_shape": (8, 8, 1), "energy": {"name": "state", "channels": 4}}
    model = jebm.build(spec | {"backbone": BACKBONES[name]})
    params = random_params(model, scale=0.3, dtype=jnp.float64)
    eps = random_latents(model, 3, dtype=jnp.float64)
    z = to_latents(model, params, eps, "eps")

    def reached(backbone):
        return top_down(backbone, 3, given(z))[2]

    state = nn.apply(reached, model.backbone)(params.backbone)
    expected = model.energy.apply(params.energy, (), state)
    assert np.ptp(expected) > 1e-3
    for found in (
        jebm.energy(model, params, z),
        jebm.energy(model, params, z, state),
        log_standard_normal(eps) - logdensity(model, params, eps, space="eps"),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_an_energy_of_the_state_needs_one_array():
    energy = State(4, (5,))
    with pytest.raises(ValueError, match="whose state is one array, got a dict"):
        energy.init(jax.random.key(0), (), {"h": jnp.ones((2, 3))})


@pytest.mark.parametrize("side", [5, 7, 8])
def test_a_halving_layer_is_the_convolution_of_flax(side):
    x = jax.random.normal(jax.random.key(0), (2, side, side, 3))
    ours = energies._halving(State(4, (5,)), name="conv")
    y, params = ours.init_with_output(jax.random.key(1), x)
    theirs = nn.Conv(4, (4, 4), strides=2)
    np.testing.assert_allclose(y, theirs.apply(params, x), atol=1e-5)
