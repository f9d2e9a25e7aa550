"""The contract of priors, the continuous flow and the energies behind it."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jebm
from jebm import partition, priors
from jebm.densities import logdensity
from jebm.hierarchy import log_standard_normal
from jebm.learning import Options
from jebm.priors.flow import Flow
from tests.models import grid_nodes, random_params, small_model

KEY = jax.random.key(0)
SLOW = pytest.mark.slow


def toy(dims=(1, 1)):
    """A small generator with an encoder, and random parameters."""
    model = small_model(dims, encoder_widths=(4,))
    return priors.freeze(model, random_params(model))


def two_modes(key, frozen, num):
    """Draws of a law far from N(0, I): the bottom unit at -1.5 or at 1."""
    key_mode, key_noise = jax.random.split(key)
    eps = frozen.noise(key_noise, num)
    right = jax.random.bernoulli(key_mode, 0.6, (num, 1))
    bottom = jnp.where(right, 1.0, -1.5) + 0.3 * eps[0]
    return priors.Draws((bottom, 0.8 * eps[1] + 0.5 * bottom))


def learned(prior, frozen, draw, updates, batch=200):
    """The law after so many updates on fresh draws."""
    state = prior.init(KEY, frozen, draw(KEY, frozen, batch))

    @jax.jit
    def update(state, step):
        key = jax.random.fold_in(jax.random.key(1), step)
        return prior.update(KEY, frozen, state, draw(key, frozen, batch))[0]

    for step in range(updates):
        state = update(state, step)
    return priors.Law(prior, frozen, state)


def test_frozen_generator_is_that_of_the_model():
    model = small_model((2, 1), encoder_widths=(4,))
    params = random_params(model)
    frozen = priors.freeze(model, params)
    eps = frozen.noise(KEY, 5)
    assert frozen.size == 3
    for back, layer in zip(frozen.layers(frozen.flat(eps)), eps, strict=True):
        np.testing.assert_array_equal(back, layer)
    x = jnp.asarray(np.random.default_rng(0).random((5, 1, 1, 1)), jnp.float32)
    draws = frozen.draws(KEY, x)
    latents = jebm.posterior_sample(KEY, frozen.model, frozen.params, x)
    for mine, theirs in zip(frozen.transport(draws.eps)[0], latents, strict=True):
        assert mine.shape == theirs.shape
    with pytest.raises(ValueError, match="divide 8-bit images by 255"):
        frozen.draws(KEY, np.zeros((5, 1, 1, 1), np.uint8))
    untilted = jebm.sample(KEY, model, params, 5, prior="gaussian")
    gaussian = priors.Law(priors.Gaussian(), frozen, ())
    sampled = jebm.sample(KEY, model, params, 5, prior=gaussian)
    assert sampled.x.shape == untilted.x.shape
    np.testing.assert_array_equal(gaussian.log_tilt(eps), np.zeros(5))


class _Linear(nn.Module):
    """v = a eps: the flow stretches by exp(a)."""

    a: float

    @nn.compact
    def __call__(self, eps, t):
        del t
        return self.param("a", nn.initializers.constant(self.a), ()) * eps


@dataclasses.dataclass(frozen=True)
class _LinearFlow(Flow):
    num_integration_steps: int = 50
    a: float = 0.7

    def _network(self) -> Any:
        return _Linear(self.a)


@pytest.mark.parametrize("exact_below", [64, 0], ids=["trace", "probe"])
def test_density_of_a_linear_flow_is_that_of_a_wider_normal(exact_below):
    frozen = toy((2, 1))
    prior = _LinearFlow(exact_below=exact_below)
    eps = frozen.noise(KEY, 20)
    state = prior.init(KEY, frozen, priors.Draws(eps))
    law = priors.Law(prior, frozen, state)
    flat, scale = np.asarray(frozen.flat(eps)), np.exp(0.7)
    normal = -0.5 * (flat / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
    # Heun's rule in 50 steps is right to about h^2.
    np.testing.assert_allclose(law.logdensity(eps), normal.sum(axis=1), atol=1e-3)
    drawn = np.asarray(frozen.flat(law.sample(KEY, 20)))
    start = np.asarray(frozen.flat(frozen.noise(KEY, 20)))
    np.testing.assert_allclose(drawn, scale * start, rtol=1e-3)


def test_flow_learns_a_law_of_two_modes_and_knows_its_density():
    frozen = toy()
    law = learned(Flow(width=32, depth=2, num_steps=800), frozen, two_modes, 800)
    nodes, cell = grid_nodes(bound=5, num=81)
    density = np.exp(np.asarray(jax.jit(law.logdensity)(nodes)))
    # Normalised to the error of integration, of the grid and of Heun's rule.
    assert abs(density.sum() * cell - 1) < 0.03
    drawn = np.asarray(frozen.flat(law.sample(jax.random.key(3), 4000)))
    due = np.asarray(frozen.flat(two_modes(jax.random.key(4), frozen, 4000).eps))
    # Means of 4,000: standard errors are .02.
    np.testing.assert_allclose(drawn.mean(axis=0), due.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(due.T), atol=0.15)
    assert abs((drawn[:, 0] > 0).mean() - 0.6) < 0.05
    mean = (density * np.asarray(nodes[0])[:, 0]).sum() * cell
    assert abs(mean - drawn[:, 0].mean()) < 0.08  # the density is that of the draws


@pytest.mark.slow
@pytest.mark.parametrize("nce_steps", [0, 1500])
def test_joint_energy_learns_the_same_law_and_its_normaliser(nce_steps):
    frozen = toy()
    prior = priors.Joint(
        energy=jebm.energies.Joint((32, 32)), num_steps=1500, persistent_chains=400,
        persistent_steps=5, step_size=0.5, chain_steps=300, num_particles=2000,
        num_temperatures=100, learning_rate=5e-3, nce_steps=nce_steps,
    )  # fmt: skip
    law = learned(prior, frozen, two_modes, 1500)
    nodes, cell = grid_nodes(bound=5, num=81)
    log_mass = jax.nn.logsumexp(jax.jit(law.logdensity)(nodes)) + np.log(cell)
    log_z = law.log_z(jax.random.key(2))
    assert abs(log_z.value - log_mass) < 0.05 + 4 * log_z.standard_error
    drawn = np.asarray(frozen.flat(law.sample(jax.random.key(3), 4000)))
    due = np.asarray(frozen.flat(two_modes(jax.random.key(4), frozen, 4000).eps))
    np.testing.assert_allclose(drawn.mean(axis=0), due.mean(axis=0), atol=0.2)
    assert abs((drawn[:, 0] > 0).mean() - 0.6) < 0.1


def test_model_of_a_joint_energy_is_made_in_a_compiled_function_too():
    frozen = toy()
    prior = priors.Joint(persistent_chains=8)
    law = priors.Law(prior, frozen, prior.init(KEY, frozen, two_modes(KEY, frozen, 8)))

    def draw(law):
        return jebm.sample(KEY, *priors.as_model(law, jebm.MALA(5, 0.3)), 3).x

    with pytest.raises(ValueError, match="chain must be given in a compiled function"):
        jax.jit(lambda law: priors.as_model(law)[1])(law)
    np.testing.assert_allclose(jax.jit(draw)(law), draw(law), rtol=1e-5)


def test_second_stage_learns_from_latents_as_from_images():
    model = small_model((1, 1), encoder_widths=(4,))
    params = random_params(model)
    learner = jebm.second_stage(
        model, jebm.Langevin(3, 0.3), optax.adam(1e-2), Options(persistent_chains=8)
    )
    state = learner.init(KEY, params.backbone)
    x = np.random.default_rng(0).random((8, 1, 1, 1)).astype(np.float32)
    latents = _encoded(learner, state, x)
    by_images, info = learner.update(KEY, state, x)
    by_latents, info_latents = learner.update(KEY, state, latents)
    assert info.keys() == info_latents.keys()
    for one, other in zip(
        jax.tree.leaves(by_images), jax.tree.leaves(by_latents), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def _encoded(learner, state, x):
    """The latents that the update draws for itself."""
    del learner
    from jebm import chains
    from jebm.learning.state import Role

    model = small_model((1, 1), encoder_widths=(4,))
    key = jax.random.fold_in(jax.random.fold_in(KEY, Role.POSTERIOR), state.step)
    keys = chains.example_keys(key, jnp.arange(len(x)))
    noise = chains.draw_noise(keys, model, state.params)
    return chains.encode(model, state.params, x, noise)[0]


def test_second_stage_without_encoder_asks_for_latents():
    model = small_model((1, 1))
    learner = jebm.second_stage(model, jebm.Langevin(2, 0.3), optax.adam(1e-2))
    state = learner.init(KEY, random_params(model).backbone)
    with pytest.raises(ValueError, match="needs a backbone with an encoder"):
        learner.update(KEY, state, np.zeros((2, 1, 1, 1), np.float32))
    state, _ = learner.update(KEY, state, (jnp.zeros((2, 1)), jnp.zeros((2, 1))))
    assert state.step == 1
    with pytest.raises(ValueError, match=r"latents\[0\] must have shape"):
        learner.update(KEY, state, (jnp.zeros((2, 3)), jnp.zeros((2, 1))))


def test_only_the_second_stage_takes_latents():
    model = small_model((1, 1), encoder_widths=(4,))
    learner = jebm.variational(model, jebm.Langevin(2, 0.3), optax.adam(1e-2))
    with pytest.raises(ValueError, match="only second_stage takes latents"):
        learner.update(KEY, learner.init(KEY), (jnp.zeros((2, 1)), jnp.zeros((2, 1))))


def test_concatenated_energy_reads_the_noise_alone():
    frozen = toy()
    prior = priors.Concatenated(
        energy=jebm.energies.Joint((8,)), persistent_chains=50, num_steps=50
    )
    law = learned(prior, frozen, two_modes, 50, batch=50)
    eps = frozen.noise(KEY, 6)
    other = toy()  # the same shapes, another hierarchy
    moved = jax.tree.map(lambda leaf: leaf + 0.3, other.params)
    elsewhere = priors.Law(prior, dataclasses.replace(frozen, params=moved), law.state)
    np.testing.assert_array_equal(law.log_tilt(eps), elsewhere.log_tilt(eps))
    assert np.std(law.log_tilt(eps)) > 1e-3
    with pytest.raises(ValueError, match="no energy of the latents"):
        prior.model(frozen, law.state)


def test_concatenated_energy_has_the_precision_of_its_generator(x64):
    model = small_model((1, 1), encoder_widths=(4,))
    frozen = priors.freeze(model, jebm.init(KEY, model, jnp.float32))
    prior = priors.Concatenated(energy=jebm.energies.Joint((8,)), persistent_chains=4)
    eps = frozen.noise(KEY, 4)
    state = prior.init(KEY, frozen, priors.Draws(eps))
    state, _ = prior.update(KEY, frozen, state, priors.Draws(eps))
    drawn = prior.sample(KEY, frozen, state, 2)
    for leaf in jax.tree.leaves((state, drawn, prior.log_tilt(frozen, state, eps))):
        assert leaf.dtype != jnp.float64


def test_law_as_a_model_has_its_density():
    frozen = toy()
    law = learned(Flow(width=16, depth=1, num_steps=100), frozen, two_modes, 100)
    model, params = priors.as_model(law)
    eps = frozen.noise(KEY, 7)
    np.testing.assert_allclose(
        logdensity(model, params, eps, space="eps"), law.logdensity(eps), atol=1e-4
    )
    # Of z: p_beta(z) times the tilt.
    latents = frozen.transport(eps)[0]
    plain = logdensity(frozen.model, frozen.params, latents, space="z")
    np.testing.assert_allclose(
        jebm.prior_logdensity(model, params, latents),
        plain + law.log_tilt(eps),
        atol=1e-4,
    )
    x = jnp.full((3, 1, 1, 1), 0.5)
    assert jebm.scores.score(KEY, model, params, x).shape == (3,)
    assert np.isfinite(jebm.sample(KEY, model, params, 3, num_steps=5).x).all()


def test_sample_by_a_law_is_its_own_draw_decoded():
    frozen = toy()
    law = learned(Flow(width=16, depth=1, num_steps=20), frozen, two_modes, 20)
    samples = jebm.sample(KEY, frozen.model, frozen.params, 4, prior=law)
    np.testing.assert_allclose(
        samples.x, frozen.decode(law.sample(KEY, 4)), rtol=1e-6, atol=1e-6
    )
    with pytest.raises(ValueError, match="a Law draws in its own way"):
        jebm.sample(KEY, frozen.model, frozen.params, 4, prior=law, num_steps=3)
    with pytest.raises(ValueError, match="a Law draws in its own way"):
        jebm.sample(KEY, frozen.model, frozen.params, 4, prior=law, temperature=0.7)
    other = toy((2, 1))
    with pytest.raises(ValueError, match="a Law of this model's backbone"):
        jebm.sample(KEY, other.model, other.params, 4, prior=law)


def test_prior_without_a_density_says_so():
    frozen = toy()

    class Blind(priors.Gaussian):
        density = None

        def log_tilt(self, frozen, state, eps):
            return priors.Prior.log_tilt(self, frozen, state, eps)

    law = priors.Law(Blind(), frozen, ())
    with pytest.raises(ValueError, match="Blind has no density"):
        law.log_tilt(frozen.noise(KEY, 2))
    model, params = priors.as_model(law)
    assert not priors.has_density(model)
    np.testing.assert_array_equal(
        jebm.sample(KEY, model, params, 3).x,
        jebm.sample(KEY, frozen.model, frozen.params, 3, prior=law).x,
    )
    with pytest.raises(ValueError, match="Blind has no density"):
        jebm.scores.score(KEY, model, params, jnp.full((3, 1, 1, 1), 0.5))


SMALL: dict[str, dict[str, Any]] = {
    "joint": {"persistent_chains": 20, "persistent_steps": 2, "chain_steps": 3},
    "concatenated": {"persistent_chains": 20, "persistent_steps": 2, "chain_steps": 3},
    "flow": {"width": 8, "depth": 1, "num_integration_steps": 2},
    "mixture": {"num_components": 4},
    "vamp": {"num_components": 4},
    "lars": {"max_tries": 4},
    "ncp": {"num_proposals": 8, "num_normaliser": 8},
    "multi_stage": {
        "persistent_chains": 20, "persistent_steps": 2, "chain_steps": 3,
        "num_particles": 5, "num_temperatures": 3,
    },
    "diffusion": {"chain_steps": 2},
    "tilted_flow": {
        "flow": priors.Flow(width=8, depth=1, num_integration_steps=2),
        "joint": priors.Joint(persistent_chains=20, persistent_steps=2),
        "num_proposals": 2,
    },
    "pixel": {"persistent_chains": 20, "persistent_steps": 2, "chain_steps": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(priors.PRIORS))
@pytest.mark.parametrize("kind", ["vectors", pytest.param("maps", marks=SLOW)])
def test_every_prior_keeps_the_contract(name, kind):
    frozen = toy((2, 1)) if kind == "vectors" else ladder()
    prior = priors.PRIORS[name](**SMALL.get(name, {}))
    x = jnp.asarray(np.random.default_rng(0).random((20, *frozen.model.image_shape)))
    draws = frozen.draws(KEY, x.astype(jnp.float32))
    if prior.lacks(frozen):
        pytest.skip(prior.lacks(frozen))
    state = prior.init(KEY, frozen, draws)
    after, info = jax.jit(prior.update)(KEY, frozen, state, draws)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert all(np.shape(value) == () for value in info.values())
    sample = jax.jit(prior.sample, static_argnums=(3, 4))
    eps = sample(KEY, frozen, after, 4, 1)
    assert tuple(e.shape[1:] for e in eps) == frozen.shapes
    assert all(len(e) == 4 and np.isfinite(e).all() for e in eps)
    if kind == "vectors":
        assert len(sample(KEY, frozen, after, 4, 2)[0]) == 4
    assert isinstance(prior.cannot, str)
    assert prior.num_parameters(after) >= 0
    if prior.density is None:
        return
    tilt = jax.jit(prior.log_tilt)(frozen, after, eps)
    assert tilt.shape == (4,)
    assert np.isfinite(tilt).all()
    law = priors.Law(prior, frozen, after)
    np.testing.assert_allclose(
        law.logdensity(eps), log_standard_normal(eps) + tilt, rtol=1e-5
    )
    if prior.density == priors.NORMALISED:
        assert law.log_z(KEY).value == 0


_QUICK = ("gaussian", "joint", "mixture")  # to compile


@pytest.mark.parametrize(
    "name",
    [
        name if name in _QUICK else pytest.param(name, marks=SLOW)
        for name in sorted(priors.PRIORS)
    ],
)
def test_every_prior_is_a_model_that_is_kept(name, tmp_path):
    frozen = toy((2, 1))
    prior = priors.PRIORS[name](**SMALL.get(name, {}))
    draws = frozen.draws(KEY, jnp.full((20, *frozen.model.image_shape), 0.3))
    law = priors.Law(prior, frozen, prior.init(KEY, frozen, draws))
    law = dataclasses.replace(law, state=prior.update(KEY, frozen, law.state, draws)[0])
    model, params = priors.as_model(law)
    drawn = jebm.sample(KEY, model, params, 3)
    own = jebm.sample(KEY, frozen.model, frozen.params, 3, prior=law)
    np.testing.assert_allclose(drawn.x, own.x, atol=1e-5)
    jebm.save(tmp_path, model, params)
    again, kept = jebm.load(tmp_path)
    assert again == model
    np.testing.assert_array_equal(jebm.sample(KEY, again, kept, 3).x, drawn.x)
    assert priors.draws_itself(model) == (name != "joint")
    if priors.draws_itself(model):
        same = priors.law_of(again, kept)
        assert same.prior == prior
        # What learning alone reads is left behind.
        assert _size(same.state) <= _size(law.state)
    if priors.has_density(model):
        latents = frozen.transport(law.sample(KEY, 3))[0]
        energy = -law.log_tilt(law.sample(KEY, 3))
        found = jebm.energy(model, params, latents)
        np.testing.assert_allclose(found, energy, rtol=1e-3, atol=1e-3)


def _size(state):
    return sum(np.size(leaf) for leaf in jax.tree.leaves(state))


def test_model_of_a_law_runs_a_chain_where_one_is_asked_for():
    frozen = toy()
    law = learned(Flow(width=16, depth=1, num_steps=50), frozen, two_modes, 50)
    model, params = priors.as_model(law)
    own = jebm.sample(KEY, model, params, 4)
    gaussian = jebm.sample(KEY, frozen.model, frozen.params, 4, prior="gaussian")
    chosen = {
        "kernel": {"kernel": jebm.MALA(3, 0.2)},
        "num_steps": {"num_steps": 3},
        "temperature": {"temperature": 1.0},
        "above": {"above": own.latents[1:]},
    }
    for name, argument in chosen.items():
        by_chain = jebm.sample(KEY, model, params, 4, **argument)
        assert np.abs(by_chain.latents[0] - own.latents[0]).max() > 1e-3, name
    no_tilt = jebm.sample(KEY, model, params, 4, prior="gaussian")
    np.testing.assert_array_equal(no_tilt.x, gaussian.x)


def test_sampler_of_a_law_is_exported():
    frozen = toy()
    law = learned(priors.Mixture(num_components=3), frozen, two_modes, 5)
    model, params = priors.as_model(law)

    @jax.jit
    def sampler(seed):
        return jebm.sample(jax.random.key(seed), model, params, 4).x

    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    file = jax.export.export(sampler)(seed).serialize()
    again = jax.export.deserialize(bytearray(file)).call
    np.testing.assert_allclose(
        again(np.uint32(3)), sampler(jnp.uint32(3)), rtol=1e-5, atol=1e-6
    )


def ladder():
    """A generator of maps."""
    backbone = jebm.backbones.Ladder(
        latent_shapes=((4, 4, 2), (3,)), width=8, encoder_widths=(8, 8)
    )
    model = jebm.Model((8, 8, 1), backbone, None)
    return priors.freeze(model, jebm.init(KEY, model))


@pytest.mark.parametrize("chain", [jebm.MALA(60, 0.8), jebm.Underdamped(60, 0.8)])
def test_product_of_laws_is_the_sum_of_their_tilts(chain):
    frozen = toy()
    wide = _LinearFlow(a=0.3)
    law = priors.Law(wide, frozen, wide.init(KEY, frozen, priors.Draws(())))
    both = priors.product([law, law], [2.0, -0.5], chain)
    eps = frozen.noise(KEY, 5)
    np.testing.assert_allclose(both.log_tilt(eps), 1.5 * law.log_tilt(eps), rtol=1e-5)
    # N(0, exp(.6)) over N(0, 1), to the power 1.5: again normal.
    precision = 1 + 1.5 * (np.exp(-0.6) - 1)
    drawn = np.asarray(frozen.flat(both.sample(KEY, 4000)))
    np.testing.assert_allclose(drawn.std(axis=0), precision**-0.5, rtol=0.08)


def test_model_of_a_product_has_its_normaliser():
    frozen = toy()
    wide = _LinearFlow(a=0.3)
    law = priors.Law(wide, frozen, wide.init(KEY, frozen, priors.Draws(())))
    both = priors.product([law], [0.5])
    # Of each unit: E[(n / N)^.5] of n = N(0, s^2), N = N(0, 1).
    s = np.exp(0.3)
    expected = frozen.size * 0.5 * np.log(2 * s / (1 + s**2))
    for found in (
        both.log_z(jax.random.key(1)),
        partition.log_z(jax.random.key(2), *priors.as_model(both)),
    ):
        assert found.standard_error < 0.02
        assert abs(found.value - expected) < 4 * found.standard_error + 0.005


def test_product_refuses_what_it_cannot_add():
    frozen = toy()
    law = priors.Law(priors.Gaussian(), frozen, ())
    with pytest.raises(ValueError, match="laws must hold at least one"):
        priors.product([])
    with pytest.raises(ValueError, match="one of each of 2 laws, got 1"):
        priors.product([law, law], [1.0])
    for chain in (jebm.Langevin(2, 0.1), jebm.Tempered(adjusted=True), 3):
        with pytest.raises(ValueError, match="chain must have a Metropolis test"):
            priors.product([law], chain=chain)
    with pytest.raises(ValueError, match=r"must move in space 'eps'.*got 'z'"):
        priors.product([law], chain=jebm.MALA(2, 0.1, space="z"))
    blind = priors.Law(priors.Diffusion(), frozen, ())
    with pytest.raises(ValueError, match="Diffusion has no density"):
        priors.product([law, blind])


def test_a_loop_of_updates_compiles_one_step():
    frozen, prior = toy((2, 1)), priors.Joint()
    assert prior._learner(frozen) is priors.Joint()._learner(frozen)
    assert prior._learner(frozen) is not priors.Joint(nce_steps=7)._learner(frozen)
