import dataclasses
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jebm
from jebm.distributions import Normal
from tests.models import random_params, small_model

SPEC = {
    "image_shape": [4, 4, 3],
    "backbone": {"name": "vector", "latent_dims": [3, 2], "conditioning": "above"},
    "energy": {"name": "layerwise", "widths": [[8, 8], [4]]},
    "likelihood": {"name": "bernoulli"},
    "chains": {
        "prior": {"num_steps": 3},
        "posterior": {"space": "z", "start": "prior"},
    },
}


def test_equal_specs_build_equal_models_that_hash_alike():
    model = jebm.build(SPEC)
    assert model == jebm.build(SPEC) and hash(model) == hash(jebm.build(SPEC))
    assert model != jebm.build({**SPEC, "likelihood": {"name": "gaussian"}})


def test_build_reads_every_part_of_the_spec():
    model = jebm.build(SPEC)
    assert model.image_shape == (4, 4, 3)
    assert model.backbone.latent_shapes == ((3,), (2,))
    assert model.backbone.output_shape == (4, 4, 3)
    assert model.energy.widths == ((8, 8), (4,))
    assert model.chains.prior == jebm.Langevin(num_steps=3)
    assert model.chains.posterior.space == "z"
    assert model.chains.posterior.num_steps == 20
    assert jebm.build({**SPEC, "energy": None}).energy is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": {"name": "ladder2"}}, r"unknown backbone 'ladder2'; known: \["),
        (
            {"energy": {"name": "x"}},
            r"unknown energy 'x'; known: \['conv', 'function', 'joint', 'joint_conv'",
        ),
        ({"likelihood": {"name": "x"}}, "unknown likelihood 'x'; known: "),
        ({"backbone": {"latent_dim": 3}}, r"\['latent_dim'\]; known: .*'latent_dims'"),
        ({"backbone": {"output_shape": (1, 1, 1)}}, r"unknown .*\['output_shape'\]"),
        ({"backbone": {"parent": None}}, r"unknown .*\['parent'\]"),
        ({"chains": {"priors": {}}}, r"unknown chain: \['priors'\]; known: "),
        ({"chains": {"prior": {"steps": 3}}}, r"unknown .*\['steps'\]; known: "),
        ({"chains": {"prior": {"space": "w"}}}, r"unknown space 'w'; known: "),
        ({"chains": {"prior": {"start": "w"}}}, r"unknown start 'w'; known: "),
        ({"chains": {"prior": {"num_steps": -1}}}, "num_steps must be .* got -1"),
        ({"chains": {"prior": {"step_size": 0}}}, "step_size must be positive, got 0"),
        ({"backbone": {"conditioning": "below"}}, "unknown conditioning 'below'"),
        ({"backbone": {"latent_dims": ()}}, "latent_dims must be positive integers"),
        ({"backbone": {"latent_dims": (2, 0)}}, "latent_dims must be positive"),
        ({"backbone": {"activation": "sin"}}, "unknown activation 'sin'; known: "),
        ({"energy": {"activation": "sin"}}, "unknown activation 'sin'; known: "),
        ({"chains": {"prior": {"step_size": "a"}}}, "step_size must be .* got 'a'"),
        ({"chains": {"prior": {"num_steps": True}}}, "num_steps must be .* got True"),
        ({"backbone": "vector"}, "backbone must be a mapping, got 'vector'"),
        ({"backbone": {"latent_dims": 5}}, "backbone 'vector': "),
        ({"backbone": {"log_scale_bound": 0.0}}, "log_scale_bound must be positive"),
        ({"energy": {"widths": 5}}, "energy widths must be a tuple, got 5"),
        (
            {"energy": {"name": "joint", "widths": [[8], [4]]}},
            "joint energy widths must be a tuple of integers",
        ),
        ({"likelihood": {"name": "gaussian", "scale": "a"}}, "likelihood 'gaussian': "),
        ({"image_shape": 5}, "image_shape must be three positive integers"),
        ({"image_shape": (4, 4)}, r"image_shape must be three .* got \(4, 4\)"),
        ({"image_shape": (4, 0, 1)}, "image_shape must be three positive integers"),
        ({"colour": 1}, r"unknown field of the model: \['colour'\]; known: "),
    ],
)
def test_a_wrong_spec_is_refused_with_the_known_names(change, message):
    with pytest.raises(ValueError, match=message):
        jebm.build({**SPEC, **change})


def test_build_needs_an_image_shape():
    with pytest.raises(ValueError, match="image_shape"):
        jebm.build({})


def test_wrong_number_of_energy_widths_is_refused():
    model = jebm.build({**SPEC, "energy": {"widths": ((8,),)}})
    with pytest.raises(ValueError, match="got 1 for 2 layers"):
        jebm.init(jax.random.key(0), model)


def test_equal_models_share_one_trace():
    traces = []

    @jax.jit
    def energy(model, params, z):
        traces.append(model)
        return jebm.energy(model, params, z)

    params = jebm.init(jax.random.key(0), jebm.build(SPEC))
    for _ in range(3):
        energy(jebm.build(SPEC), params, (jnp.ones((1, 3)), jnp.ones((1, 2))))
    assert len(traces) == 1


def test_model_passes_through_grad_vmap_and_pmap_as_an_ordinary_argument():
    model = small_model((2, 1))
    params = random_params(model)
    z = (jnp.ones((2, 3, 2)), jnp.ones((2, 3, 1)))
    expected = jax.vmap(lambda z: jebm.energy(model, params, z))(z)
    mapped = jax.pmap(jebm.energy, in_axes=(None, None, 0))(model, params, z)
    np.testing.assert_allclose(mapped, expected, rtol=1e-6)
    grads = jax.grad(
        lambda model, params, z: jebm.energy(model, params, z).sum(), argnums=1
    )(model, params, jax.tree.map(lambda a: a[0], z))
    assert jax.tree.structure(grads) == jax.tree.structure(params)


def test_init_is_a_function_of_the_key():
    model = small_model((2, 1))
    first, again, other = (jebm.init(jax.random.key(s), model) for s in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert any(
        np.any(a != b)
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True)
    )


class OwnBackbone(nn.Module):
    """A user's own two-layer generator, written against the contract alone."""

    latent_shapes = ((2, 2, 1), (3,))

    def setup(self):
        self.dense, self.out = nn.Dense(8), nn.Dense(4)

    def start(self, batch):
        return jnp.zeros((batch, 3))

    def prior(self, i, state):
        if i == 1:
            return Normal(jnp.zeros_like(state), jnp.ones_like(state))
        loc, log_scale = jnp.split(self.dense(state), 2, axis=-1)
        shape = (-1, 2, 2, 1)
        return Normal(loc.reshape(shape), jnp.exp(nn.tanh(log_scale)).reshape(shape))

    def merge(self, i, state, z):
        return z

    def decode(self, state):
        return self.out(state.reshape(state.shape[0], -1)).reshape(-1, 2, 2, 1)


class OwnEnergy(nn.Module):
    """Couples the layers: any module latents -> [B] fits."""

    @nn.compact
    def __call__(self, latents):
        joined = jnp.concatenate([z.reshape(z.shape[0], -1) for z in latents], axis=-1)
        return nn.Dense(1)(nn.tanh(nn.Dense(4)(joined)))[:, 0]


def test_own_backbone_with_a_map_layer_and_own_energy_work_throughout():
    model = jebm.Model((2, 2, 1), OwnBackbone(), OwnEnergy())
    params = jebm.init(jax.random.key(0), model)
    x, latents = jebm.sample(jax.random.key(1), model, params, 5)
    assert x.shape == (5, 2, 2, 1)
    assert [z.shape for z in latents] == [(5, 2, 2, 1), (5, 3)]
    posterior = jebm.posterior_sample(jax.random.key(2), model, params, x)
    assert jebm.joint_logdensity(model, params, x, posterior).shape == (5,)


def test_a_decoder_of_the_wrong_shape_is_refused_by_init():
    model = jebm.Model((3, 3, 1), OwnBackbone(), None)
    with pytest.raises(ValueError, match=r"decode must return \(1, 3, 3, 1\)"):
        jebm.init(jax.random.key(0), model)


def test_a_model_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        small_model().energy = None


def test_importing_jebm_needs_neither_tensorflow_nor_the_experiments_packages():
    banned = ["tensorflow", "ml_collections", "absl.flags", "clu", "orbax", "optax"]
    code = f"import jebm, sys; print([m for m in {banned} if m in sys.modules])"
    # Only what jebm itself imports counts: flax may load some of these.
    flax_code = (
        f"import flax.linen, sys; print([m for m in {banned} if m in sys.modules])"
    )
    run = [
        subprocess.run([sys.executable, "-c", c], capture_output=True, text=True).stdout
        for c in (code, flax_code)
    ]
    assert run[0] == run[1] != ""


class Flat(nn.Module):
    """An energy of shape [B, 1], and one summed over the batch."""

    total: bool = False

    @nn.compact
    def __call__(self, latents):
        value = nn.Dense(1)(latents[0])
        return value.sum() if self.total else value


@pytest.mark.parametrize(("total", "got"), [(False, r"\(1, 1\)"), (True, r"\(\)")])
def test_an_energy_of_another_shape_is_refused(total, got):
    base = jebm.build({"image_shape": (4, 4, 1)})
    model = dataclasses.replace(base, energy=Flat(total))
    params = jebm.init(jax.random.key(0), model)
    with pytest.raises(ValueError, match=rf"one value per example, \(1,\), got {got}"):
        jebm.sample(jax.random.key(1), model, params, 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_shape": (8, 8)}, r"three positive integers \(H, W, C\), got \(8, 8\)"),
        (
            {"backbone": jebm.backbones.Vector},
            "backbone must be a Linen module",
        ),
        (
            {"energy": jebm.energies.Joint},
            "energy must be a Linen module or None",
        ),
        ({"energy": lambda z: 0}, r"jebm\.energies\.Function makes one of functions"),
        ({"likelihood": "gaussian"}, r"one of jebm\.likelihoods, got 'gaussian'"),
        ({"chains": jebm.Langevin()}, r"chains must be a jebm\.Chains, got Langevin"),
    ],
)
def test_parts_of_another_kind_are_refused_at_once(change, words):
    parts = {"image_shape": (8, 8, 1), "backbone": jebm.backbones.Vector()}
    with pytest.raises(ValueError, match=words):
        jebm.Model(**({**parts, "energy": None} | change))


class Own(nn.Module):
    """A backbone of the user's, without the attribute `compute_dtype`."""

    latent_shapes: tuple = ((1,),)


def test_compute_dtype_is_set_for_the_backbone_and_goes_back():
    model = jebm.build({"image_shape": (8, 8, 1)})
    changed = jebm.with_compute_dtype(model, "bfloat16")
    assert changed.backbone.compute_dtype == "bfloat16"
    assert changed.energy.compute_dtype == "float32"
    assert changed != model and hash(changed) != hash(model)
    assert jebm.with_compute_dtype(changed, "float32") == model
    assert jebm.with_compute_dtype(changed, None) == changed
    params = jebm.init(jax.random.key(0), changed)
    for ours, theirs in zip(
        jax.tree.leaves(params),
        jax.tree.leaves(jebm.init(jax.random.key(0), model)),
        strict=True,
    ):
        assert ours.dtype == jnp.float32
        np.testing.assert_array_equal(ours, theirs)


def test_backbone_without_a_compute_dtype_is_of_float32_alone():
    model = jebm.Model((8, 8, 1), Own(), None)
    assert jebm.with_compute_dtype(model, "float32") == model
    with pytest.raises(ValueError) as raised:
        jebm.with_compute_dtype(model, "bfloat16")
    assert str(raised.value) == (
        "compute_dtype 'bfloat16' needs a backbone with an attribute compute_dtype, "
        "got Own"
    )
    with pytest.raises(ValueError, match="unknown compute_dtype 'half'; known: "):
        jebm.with_compute_dtype(model, "half")
