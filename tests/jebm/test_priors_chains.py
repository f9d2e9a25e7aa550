"""Priors that draw by chains or proposals, against closed forms and quadrature."""

import dataclasses
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jebm
from jebm import priors, spectral
from jebm.distributions import Normal
from jebm.energies import Conv
from jebm.hierarchy import log_standard_normal
from jebm.likelihoods import Gaussian
from jebm.model import Params
from jebm.priors import annealed, diffusion, walks
from tests.jebm.test_scores import (
    SLOPE,
    SPREAD,
    TILT,
    LinearHierarchy,
    Quadratic,
    exact_posterior,
    linear_model,
    precision,
)
from tests.models import grid_nodes, random_params, small_model

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def frozen():
    model = small_model((1, 1), encoder_widths=(4,))
    return priors.freeze(model, random_params(model))


def normal(mean, scale):
    """Batches of eps of two layers of one unit, N(mean, scale)."""

    def draw(key, num):
        noise = jax.random.normal(key, (num, 2))
        eps = jnp.array(mean)[None] + jnp.array(scale)[None] * noise
        return priors.Draws((eps[:, :1], eps[:, 1:]))

    return draw


def learned(prior, frozen, draw, num_steps, num=100):
    """The state after so many updates, each on another batch."""
    state = prior.init(KEY, frozen, draw(KEY, num))

    @jax.jit
    def update(state):
        batch = draw(jax.random.fold_in(jax.random.key(1), state.step), num)
        return prior.update(KEY, frozen, state, batch)

    for _ in range(num_steps):
        state, info = update(state)
    return state, info


def assert_moments(values, mean, scale, tolerance):
    """Mean and standard deviation of each column."""
    np.testing.assert_allclose(np.mean(values, axis=0), mean, atol=tolerance)
    np.testing.assert_allclose(np.std(values, axis=0), scale, atol=tolerance)


# Annealing and chains.


def linear_and_quadratic(params, eps):
    slopes, stiffness = params
    return slopes @ eps - 0.5 * stiffness @ eps**2


def test_annealed_log_z_is_that_of_a_gaussian():
    slopes, stiffness = jnp.array([1.0, -0.5, 2.0]), jnp.array([3.0, 0.5, 0.0])
    exact = (slopes**2 / (2 * (1 + stiffness)) - jnp.log1p(stiffness) / 2).sum()
    assert abs(exact) > 1
    found = annealed.log_z(
        KEY, linear_and_quadratic, (slopes, stiffness), 3, jnp.float32, 500, 100
    )
    assert found.standard_error < 0.03
    assert abs(found.value - exact) < 4 * found.standard_error
    assert found.effective_samples > 300


def test_persistent_chains_follow_the_acceptance_and_reach_their_law():
    walk = walks.Walk(jnp.zeros((400, 1)), jnp.asarray(0.1))
    step = jax.jit(
        lambda walk, t: walks.visit(
            jax.random.fold_in(KEY, t), walk, t, 200,
            lambda eps: -2 * jnp.sum((eps - 1) ** 2), 10, 0.7,
        )
    )  # fmt: skip
    for t in range(300):
        end, walk, rate = step(walk, jnp.int32(t))
    assert end.shape == (200, 1)
    assert abs(rate - 0.7) < 0.06
    assert_moments(walk.positions, 1, 0.5, 0.08)  # errors of .025 and .018


def test_chains_must_be_a_multiple_of_the_batch(frozen):
    prior = priors.MultiStage(widths=(4,), persistent_chains=100)
    draws = priors.Draws(frozen.noise(KEY, 30))
    with pytest.raises(ValueError, match="persistent_chains must be a multiple"):
        prior.update(KEY, frozen, prior.init(KEY, frozen, draws), draws)


# Multi-stage noise contrast.

MEAN, SCALE = (1.0, -0.8), (0.5, 0.7)
STAGES = priors.MultiStage(
    learning_rate=3e-3, num_steps=600, num_stages=2, widths=(32,),
    persistent_chains=400, persistent_steps=5, chain_steps=50,
    num_particles=500, num_temperatures=60,
)  # fmt: skip


@pytest.fixture(scope="module")
def stages(frozen):
    return learned(STAGES, frozen, normal(MEAN, SCALE), STAGES.num_steps, 400)[0]


def test_stages_learn_the_density_of_a_known_law(frozen, stages):
    eps = normal(MEAN, SCALE)(jax.random.key(7), 1000).eps
    flat = frozen.flat(eps)
    exact = jax.scipy.stats.norm.logpdf(flat, jnp.array([MEAN]), jnp.array([SCALE]))
    law = priors.Law(STAGES, frozen, stages)
    error = law.logdensity(eps) - exact.sum(axis=1)
    gain = exact.sum(axis=1) - log_standard_normal(eps)
    assert gain.mean() > 1  # nats that there were to learn
    assert abs(error.mean()) < 0.1
    assert jnp.abs(error).mean() < 0.15


def test_draws_of_the_stages_have_the_moments_of_the_law(frozen, stages):
    eps = STAGES.sample(jax.random.key(8), frozen, stages, 2000)
    assert_moments(frozen.flat(eps), MEAN, SCALE, 0.1)


def test_log_z_of_the_stages_is_that_of_quadrature(frozen, stages):
    eps, weight = grid_nodes(6, 121)
    law = priors.Law(STAGES, frozen, stages)
    exact = jax.nn.logsumexp(law.logdensity(eps)) + math.log(weight)
    found = law.log_z(jax.random.key(9))
    assert found.standard_error < 0.02
    assert abs(found.value - exact) < 4 * found.standard_error + 1e-3
    assert abs(exact) < 0.1  # ratios of densities: nearly normalised


def test_only_the_current_stage_moves(frozen):
    prior = priors.MultiStage(
        num_steps=4, num_stages=2, widths=(4,), persistent_chains=20, persistent_steps=1
    )
    draws = normal(MEAN, SCALE)(KEY, 20)
    states = [prior.init(KEY, frozen, draws)]
    update = jax.jit(lambda state: prior.update(KEY, frozen, state, draws))
    for _ in range(6):  # two more than there are steps: the last stage stays
        states.append(update(states[-1])[0])
    for step, (old, new) in enumerate(itertools.pairwise(states)):
        pairs = [jax.tree.leaves(state.params) for state in (old, new)]
        moved = [
            any((a[stage] != b[stage]).any() for a, b in zip(*pairs, strict=True))
            for stage in range(2)
        ]
        assert moved == [step < 2, step >= 2], step


# Diffusion.

# Of jebm/priors/diffusion.py's levels, rounded, as published.
A, ABAR = (0.7221, 0.3863, 0.0228), (0.9999, 0.722, 0.279)
SIGMA, SBAR = (0.692, 0.922, 0.9997), (0.010, 0.692, 0.960)


def test_levels_are_the_published_ones():
    np.testing.assert_allclose(diffusion.A, A, atol=1e-4)
    np.testing.assert_allclose(diffusion.ABAR, ABAR, atol=5e-4)
    np.testing.assert_allclose(diffusion.SIGMA, SIGMA, atol=5e-4)
    np.testing.assert_allclose(diffusion.SBAR, SBAR, atol=5e-4)
    np.testing.assert_allclose(diffusion.PUBLISHED, (0.479, 58.9, 96.0), rtol=2e-3)


def test_pairs_have_the_moments_of_their_level():
    eps, level = jnp.full((60_000, 1), 2.0), jnp.repeat(jnp.arange(3), 20_000)
    y, noisy = (v.reshape(3, -1) for v in diffusion._pair(KEY, eps, level))
    for t in range(3):
        assert_moments(y[t], 2 * ABAR[t], SBAR[t], 0.02)
        assert_moments(noisy[t] - A[t] * y[t], 0, SIGMA[t], 0.02)
        assert abs(np.corrcoef(y[t], noisy[t] - A[t] * y[t])[0, 1]) < 0.03


def test_conditional_target_is_the_equation():
    y, noisy = jnp.array([0.3, -1.2]), jnp.array([0.9, 0.4])
    for t in range(3):
        expected = -0.5 * np.sum(np.square(y))
        if t < 2:
            rest = np.sum(np.square(A[t] * y - noisy))
            expected -= rest / (2 * SIGMA[t] ** 2)
        got = diffusion.log_conditional(y, noisy, jnp.int32(t))
        np.testing.assert_allclose(got, expected, rtol=1e-3)


class Exact(priors.Diffusion):
    """f / s_t of the law N(MEAN, SCALE): what makes each level's marginal its own."""

    def _energy(self, frozen, params, y, level):
        left, noise = jnp.array(ABAR)[level], jnp.array(SBAR)[level]
        mean = left * jnp.array(MEAN)
        variance = left**2 * jnp.array(SCALE) ** 2 + noise**2
        return jnp.sum(0.5 * y**2 - 0.5 * (y - mean) ** 2 / variance)


def test_draws_through_the_levels_have_the_law_of_the_exact_energies(frozen):
    prior = Exact(widths=(4,), chain_steps=40)
    state = prior.init(KEY, frozen, priors.Draws(()))
    steps = state.memory._replace(step_sizes=jnp.array([0.5, 0.9, 1.1]))
    eps = prior.sample(KEY, frozen, state.replace(memory=steps), 4000)
    assert_moments(frozen.flat(eps), MEAN, SCALE, 0.05)  # errors of .01


@pytest.mark.slow
def test_diffusion_learns_a_known_law(frozen):
    prior = priors.Diffusion(
        learning_rate=3e-3, num_steps=300, widths=(32, 32), chain_steps=10
    )
    state, info = learned(prior, frozen, normal(MEAN, SCALE), 300, 200)
    for t in range(3):
        assert abs(info[f"acceptance_{t}"] - 0.7) < 0.2
    eps = prior.sample(KEY, frozen, state, 2000, effort=2)
    assert_moments(frozen.flat(eps), MEAN, SCALE, 0.15)


def test_steps_without_a_test_stay_as_published(frozen):
    prior = priors.Diffusion(
        s=tuple((3e-5 * diffusion.PUBLISHED).tolist()),
        widths=(4,),
        chain_steps=2,
        adjusted=False,
    )
    state, info = learned(prior, frozen, normal(MEAN, SCALE), 2)
    scales = np.sqrt(3e-5 * np.array([0.479, 58.9, 96.0]))
    np.testing.assert_allclose(state.memory.step_sizes, scales, rtol=1e-3)
    assert "acceptance_0" not in info


def test_spectral_norms_stay_within_their_bound(frozen):
    prior = priors.Diffusion(
        learning_rate=0.3, widths=(8, 8), chain_steps=1, spectral_bound=1.0
    )
    state, _ = learned(prior, frozen, normal(MEAN, SCALE), 30)
    bounded, _ = prior._bounded(state.params, state.memory.spectral)

    def largest(params):
        kernels = spectral.kernels_of(params)
        return max(np.linalg.norm(kernel, ord=2) for kernel in kernels)

    assert largest(state.params) > 2
    assert largest(bounded) < 1.1  # the power iteration is a step behind


@pytest.mark.parametrize("of_noise", [False, True])
def test_f_reads_the_latents_or_the_noise(frozen, of_noise):
    prior = priors.Diffusion(widths=(4,), of_noise=of_noise)
    params = prior.init(KEY, frozen, priors.Draws(())).params
    params = jax.tree.map(lambda leaf: leaf + 0.3, params)
    y = jnp.array([0.4, -1.1])
    seen = y[None]
    if not of_noise:
        seen = frozen.flat(frozen.transport(frozen.layers(seen))[0])
    told = jnp.concatenate([seen, jnp.array([[0.0, 1.0, 0.0]])], axis=1)
    expected = prior._network().apply(params, told)[0, 0] / 0.7
    got = prior._energy(frozen, params, y, jnp.int32(1))
    np.testing.assert_allclose(got, expected, rtol=1e-3)
    assert not np.allclose(seen, y[None] + (0 if not of_noise else 1))


# A flow with a tilt.


@pytest.fixture(scope="module")
def linear():
    """A hierarchy whose tilted law is a Gaussian, nothing of it learned."""
    frozen = priors.freeze(*linear_model(exact_posterior(TILT), tilted=False))
    return frozen.replace(params=Params({"params": {}}, {}))


TILTED = priors.TiltedFlow(
    priors.Flow(width=8, depth=1, num_integration_steps=10),
    priors.Joint(energy=Quadratic(), persistent_chains=8),
)


@pytest.fixture(scope="module", params=["identity", "another"])
def proposals(request, linear):
    """States whose flow is N(0, I) itself, or any other law."""
    state = TILTED.init(KEY, linear, priors.Draws(()))
    if request.param == "another":
        leaves, treedef = jax.tree.flatten(state.flow.ema)
        rng = np.random.default_rng(0)
        moved = [
            leaf + 0.3 * jnp.float32(rng.normal(size=leaf.shape)) for leaf in leaves
        ]
        flow = state.flow.replace(ema=treedef.unflatten(moved))
        state = state.replace(flow=flow)
        eps = linear.noise(KEY, 100)
        assert jnp.abs(TILTED.flow.log_tilt(linear, flow, eps)).mean() > 0.2
    return state


def test_proposals_are_corrected_to_the_tilted_law(linear, proposals):
    eps = jax.jit(lambda key: TILTED.sample(key, linear, proposals, 4000))(KEY)
    z = np.concatenate(linear.transport(eps)[0], axis=1)
    # Errors of variances near .3 are .007; those of N(0, I) are further off by .2.
    np.testing.assert_allclose(np.cov(z.T), np.linalg.inv(precision(TILT)), atol=0.03)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=0.04)


def test_log_z_by_the_weights_of_the_flow_is_the_closed_form(linear, proposals):
    found = TILTED.log_z(jax.random.key(3), linear, proposals)
    # Of the normalisers of two Gaussians.
    tilted, untilted = precision(TILT), precision(np.zeros(2))
    exact = 0.5 * np.log(np.linalg.det(untilted) / np.linalg.det(tilted))
    assert abs(exact) > 0.3
    assert found.standard_error < 0.05
    assert abs(found.value - exact) < 4 * found.standard_error


def test_without_a_proposal_a_draw_is_the_flow_s(linear):
    state = TILTED.init(KEY, linear, priors.Draws(()))
    none = dataclasses.replace(TILTED, num_proposals=0)
    np.testing.assert_array_equal(  # a draw of the flow, which is here its noise
        none.sample(KEY, linear, state, 3)[0],
        linear.noise(jax.random.fold_in(jax.random.split(KEY)[0], 0), 3)[0],
    )


def test_a_flow_of_many_units_is_said_to_be_lacking(linear, frozen):
    assert TILTED.lacks(linear) == ""
    few = dataclasses.replace(TILTED, flow=priors.Flow(exact_below=1))
    assert "would be biased" in few.lacks(linear)


@pytest.mark.slow
def test_a_tilted_flow_trains_both_on_the_same_draws(frozen):
    prior = priors.TiltedFlow(
        priors.Flow(width=8, depth=1),
        priors.Joint(
            energy=jebm.energies.Layerwise((8,)), persistent_chains=20,
            persistent_steps=1,
        ),
    )  # fmt: skip
    draws = normal(MEAN, SCALE)(KEY, 20)
    state = prior.init(KEY, frozen, draws)
    assert prior.num_parameters(state) == (
        prior.flow.num_parameters(state.flow) + prior.joint.num_parameters(state.joint)
    )
    new, info = jax.jit(prior.update)(KEY, frozen, state, draws)
    assert "flow_loss" in info and "joint_prior_acceptance_rate" in info
    key_flow, key_joint = jax.random.split(KEY)
    flow, _ = prior.flow.update(key_flow, frozen, state.flow, draws)
    joint, _ = prior.joint.update(key_joint, frozen, state.joint, draws)
    for got, expected in ((new.flow, flow), (new.joint, joint)):
        for a, b in zip(*map(jax.tree.leaves, (got.ema, expected.ema)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


# An energy of pixels.

STIFFNESS, CENTRE, NOISE = 1.5, 1.2, 0.5
# x = .7 z_1 + .4 z_2 of the linear hierarchy, in its eps.
OF_EPS = np.array([0.7 * SPREAD, 0.7 * SLOPE + 0.4])


@dataclasses.dataclass(frozen=True)
class Linear(Gaussian):
    """N(x; output, scale)."""

    def mean(self, output):
        return output


@dataclasses.dataclass(frozen=True)
class Pointlike:
    """Any likelihood without a sigma."""

    def num_outputs(self, channels):
        return channels

    def mean(self, output):
        return output

    def log_prob(self, output, x):
        return jnp.zeros(len(x), x.dtype)


class Bowl(nn.Module):
    """E(x) = k (x - c)^2 / 2 of one pixel, of what it learns."""

    stiffness: float = 0.0
    centre: float = 0.0

    @nn.compact
    def __call__(self, latents):
        k = self.param("k", nn.initializers.constant(self.stiffness), ())
        shift = self.param(
            "shift", nn.initializers.constant(self.stiffness * self.centre), ()
        )
        x = latents[0].reshape(-1)
        return 0.5 * k * x**2 - shift * x


def pixels(likelihood):
    backbone = LinearHierarchy(exact_posterior(TILT))
    model = jebm.Model((1, 1, 1), backbone, None, likelihood)
    return priors.freeze(model, jebm.init(KEY, model))


@pytest.mark.parametrize("kind", ["noise", "no sigma", "noise left out"])
def test_draws_under_a_known_energy_of_pixels_are_those_of_a_gaussian(kind):
    frozen = pixels(Pointlike() if kind == "no sigma" else Linear(NOISE))
    noisy = kind == "noise"
    prior = priors.PixelEBM(
        pixel_noise=kind != "noise left out",
        energy=Bowl(STIFFNESS, CENTRE),
        persistent_chains=4,
        step_size=0.8,
        chain_steps=60,
    )
    state = prior.init(KEY, frozen, priors.Draws(()))
    weights = np.append(OF_EPS, NOISE) if noisy else OF_EPS
    law = np.eye(len(weights)) + STIFFNESS * np.outer(weights, weights)
    covariance = np.linalg.inv(law)
    mean = covariance @ weights * STIFFNESS * CENTRE
    eps = prior.sample(KEY, frozen, state, 4000)
    assert [e.shape for e in eps] == [(4000, 1), (4000, 1)]
    flat = np.asarray(frozen.flat(eps))
    assert mean[1] > 0.4  # errors of .015
    np.testing.assert_allclose(flat.mean(axis=0), mean[:2], atol=0.05)
    np.testing.assert_allclose(np.cov(flat.T), covariance[:2, :2], atol=0.05)
    x = np.asarray(prior.images(KEY, frozen, state, 4000)).reshape(-1)
    assert abs(x.mean() - weights @ mean) < 0.04
    assert abs(x.var() - weights @ covariance @ weights) < 0.04


def test_an_energy_of_pixels_learns_the_law_of_images():
    frozen = pixels(Linear(NOISE))

    def draw(key, num):
        x = 0.8 + 0.4 * jax.random.normal(key, (num, 1, 1, 1))
        return priors.Draws(frozen.noise(key, num), x)

    prior = priors.PixelEBM(
        energy=Bowl(), learning_rate=0.1, num_steps=400, ema_decay=0.98,
        persistent_chains=400, persistent_steps=5, chain_steps=50, gradient_penalty=0.0,
    )  # fmt: skip
    state, info = learned(prior, frozen, draw, 400, 200)
    assert abs(info["acceptance"] - 0.7) < 0.15
    x = prior.images(jax.random.key(5), frozen, state, 4000).reshape(-1)
    # Errors of .006; the untilted images have mean 0 and a deviation of 1.2.
    assert_moments(x, 0.8, 0.4, 0.06)


def test_an_energy_of_pixels_needs_images(frozen):
    prior = priors.PixelEBM(energy=Conv(4, (4,)), persistent_chains=4)
    draws = priors.Draws(frozen.noise(KEY, 4))
    state = prior.init(KEY, frozen, draws)
    with pytest.raises(ValueError, match=r"draws\.x"):
        prior.update(KEY, frozen, state, draws)


# All of them.

SMALL = {
    "multi_stage": priors.MultiStage(
        num_stages=2, widths=(4,), persistent_chains=4, persistent_steps=2,
        chain_steps=3, num_particles=4, num_temperatures=3,
    ),
    "diffusion": priors.Diffusion(widths=(4,), chain_steps=2, spectral_bound=2.0),
    "tilted_flow": priors.TiltedFlow(
        priors.Flow(width=4, depth=1, num_integration_steps=2),
        priors.Joint(
            energy=jebm.energies.Layerwise((4,)), persistent_chains=4,
            persistent_steps=2, num_particles=4, num_temperatures=3,
        ),
        num_proposals=2, num_weights=4,
    ),
    "pixel": priors.PixelEBM(
        energy=Conv(2, (4,)), persistent_chains=4, persistent_steps=2, chain_steps=3
    ),
}  # fmt: skip


class Maps(nn.Module):
    """Linear: vectors below which there are maps, and images of these."""

    latent_shapes = ((2, 2, 2), (3,))
    has_encoder = True
    encoder_modules = ()

    def setup(self):
        self.below, self.image = nn.Dense(8), nn.Dense(16)

    def start(self, batch):
        return jnp.zeros((batch, 3), self.image_dtype())

    def image_dtype(self):
        if self.is_initializing():
            return jnp.float32
        return jax.tree.leaves(self.variables["params"])[0].dtype

    def prior(self, i, state):
        loc = state if i == 1 else self.below(state).reshape(-1, 2, 2, 2)
        return Normal(loc, jnp.ones_like(loc))

    def merge(self, i, state, z):
        return z

    def decode(self, state):
        return self.image(state.reshape(len(state), -1)).reshape(-1, 4, 4, 1)

    def encode(self, x):
        return x.mean(axis=(1, 2, 3), keepdims=True)

    def posterior(self, i, state, features, prior, noise):
        mean = features.reshape(-1, *[1] * (noise.ndim - 1))
        q = Normal(prior.loc + mean, 0.5 * prior.scale)
        z = q.transport(noise)
        return z, q.log_prob(z)


def maps(dtype=None):
    """A hierarchy of a layer of maps and one of vectors."""
    model = jebm.Model((4, 4, 1), Maps(), None, Gaussian(0.2))
    return priors.freeze(model, random_params(model, dtype=dtype))


def check(prior, frozen):
    x = jnp.full((4, 4, 4, 1), 0.5, frozen.dtype)
    draws = frozen.draws(KEY, x)
    state = prior.init(KEY, frozen, draws)
    update = jax.jit(prior.update)
    for _ in range(2):
        state, info = update(KEY, frozen, state, draws)
    assert all(value.shape == () for value in info.values())
    sample = jax.jit(prior.sample, static_argnums=3)
    eps = sample(KEY, frozen, state, 3)
    assert [e.shape for e in eps] == [(3, *shape) for shape in frozen.shapes]
    assert all(e.dtype == frozen.dtype for e in eps)
    assert all(
        leaf.dtype == frozen.dtype
        for leaf in jax.tree.leaves(state)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    )
    assert all(np.isfinite(leaf).all() for leaf in (*eps, *info.values()))
    for a, b in zip(eps, sample(KEY, frozen, state, 2), strict=True):
        np.testing.assert_allclose(a[:2], b, atol=1e-5)
    law = priors.Law(prior, frozen, state)
    if prior.density is None:
        assert prior.cannot.startswith("give a density")
        with pytest.raises(ValueError, match="has no density"):
            law.log_tilt(eps)
    else:
        assert jax.jit(prior.log_tilt)(frozen, state, eps).shape == (3,)
        assert np.isfinite(law.log_z(KEY).value)


@pytest.mark.parametrize(
    "name",
    [
        "multi_stage",
        "diffusion",
        pytest.param("tilted_flow", marks=pytest.mark.slow),
        "pixel",
    ],
)
def test_maps_and_vectors_in_a_compiled_update_and_draw(name):
    assert type(SMALL[name]) is priors.PRIORS[name]
    check(SMALL[name], maps())


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_float64(name, x64):
    check(SMALL[name], maps(jnp.float64))


LEARNING = {
    "multi_stage": priors.MultiStage(num_steps=800, learning_rate=3e-3),
    "diffusion": priors.Diffusion(num_steps=400, chain_steps=20, learning_rate=3e-3),
    "tilted_flow": priors.TiltedFlow(
        priors.Flow(width=64, depth=2, num_steps=400),
        priors.Joint(num_steps=400, persistent_steps=10),
        num_proposals=8,
    ),
    "pixel": priors.PixelEBM(num_steps=300, chain_steps=100),
}


def distance(a, b):
    """Energy distance of two samples, [N, D] and [M, D]; 0 of one law, on average."""

    def mean(a, b):
        return np.linalg.norm(a[:, None] - b[None], axis=-1)

    def own(a):
        return mean(a, a).sum() / (len(a) * (len(a) - 1))

    return 2 * mean(a, b).mean() - own(a) - own(b)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNING)
def test_each_is_nearer_to_digits_than_the_gaussian_hierarchy(name):
    from experiments import options
    from experiments.configs import digits
    from experiments.data import datasets

    splits = datasets.load(options.read(digits.get_config()).data)
    train, test = (jnp.float32(splits[s].images) / 255 for s in ("train", "test"))
    assert train.dtype == jnp.float32 and train.max() == 1
    frozen = priors.freeze(*jebm.load_pretrained("digits"))
    prior = LEARNING[name]

    def draw(key, num):
        x = train[jax.random.randint(key, (num,), 0, len(train))]
        return frozen.draws(key, x)

    num_steps = 300 if name == "pixel" else 400
    if name in ("multi_stage", "tilted_flow"):
        num_steps = 800
    state = prior.init(KEY, frozen, draw(KEY, 100))
    update = jax.jit(prior.update)
    for step in range(num_steps):
        draws = draw(jax.random.fold_in(KEY, step), 100)
        state, _ = update(KEY, frozen, state, draws)
    held = frozen.draws(jax.random.key(1), test)

    def images(eps):
        return np.asarray(frozen.decode(eps)).reshape(len(eps[0]), -1)

    eps = jax.jit(prior.sample, static_argnums=3)(KEY, frozen, state, 500)
    found = distance(images(eps), images(held.eps))
    untilted = distance(images(frozen.noise(KEY, 500)), images(held.eps))
    print(name, found, untilted)
    assert found < 0.5 * untilted  # .018 of N(0, I), 0 of draws of Q
