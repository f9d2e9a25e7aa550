"""Priors whose density is in closed form, or nearly, against quadrature."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jebm
from experiments import options
from experiments.configs import digits
from experiments.data import datasets
from experiments.data.pixels import to_unit
from jebm import chains, priors
from jebm.hierarchy import inverse_transport, log_standard_normal
from jebm.priors import mixture
from tests.models import random_params, small_model

KEY = jax.random.key(0)
# Small, and for as few updates as the tests take.
SMALL = {
    "mixture": priors.Mixture(num_components=4, shrinkage=0.01),
    "vamp": priors.VampPrior(num_components=3, num_steps=300),
    "lars": priors.LARS(
        num_steps=600, learning_rate=1e-2, ema_decay=0.98, widths=(16, 16),
        max_tries=20, num_proposals=512,
    ),
    "ncp": priors.NCP(
        num_steps=600, learning_rate=1e-2, ema_decay=0.98, widths=(16, 16),
        num_proposals=150, num_normaliser=2048, num_particles=200,
    ),
}  # fmt: skip
NAMES = list(SMALL)

# Midpoints of fine cells, of which 5 x 5 are a cell of a histogram.
WIDTH, BLOCK = 0.1, 5
LINE = (np.arange(120) + 0.5) * WIDTH - 6
GRID = tuple(
    jnp.asarray(axis.reshape(-1, 1), jnp.float32)
    for axis in np.meshgrid(LINE, LINE, indexing="ij")
)


@functools.cache
def toy(encoder=True):
    """A frozen generator of two layers of one unit each."""
    model = small_model((1, 1), encoder_widths=(4,) if encoder else None)
    return priors.freeze(model, random_params(model))


# Two tilted Gaussians, that N(0, I) covers.
WEIGHTS = jnp.array([0.4, 0.6])
MEANS = jnp.array([[-1.0, 0.8], [0.7, -0.5]])
COVARIANCES = jnp.array([[[0.3, 0.15], [0.15, 0.3]], [[0.4, -0.1], [-0.1, 0.2]]])


def draw_known(key, num):
    """Draws of the two Gaussians."""
    key_pick, key_noise = jax.random.split(key)
    k = jax.random.categorical(key_pick, jnp.log(WEIGHTS), shape=(num,))
    noise = jax.random.normal(key_noise, (num, 2))
    factors = jnp.linalg.cholesky(COVARIANCES)
    points = MEANS[k] + jnp.einsum("nij,nj->ni", factors[k], noise)
    return points[:, :1], points[:, 1:]


def log_known(eps):
    """Their log-density, by another library."""
    points = np.concatenate(eps, axis=1)
    each = [
        np.log(w) + stats.multivariate_normal(m, c).logpdf(points)
        for w, m, c in zip(*map(np.asarray, (WEIGHTS, MEANS, COVARIANCES)), strict=True)
    ]
    return np.logaddexp(*each)


def start(prior, frozen, eps, x=None):
    """The state before the first update."""
    return jax.jit(lambda eps, x: prior.init(KEY, frozen, priors.Draws(eps, x)))(eps, x)


def learn(prior, frozen, draw, num_steps, batch=200):
    """The law after some updates on new draws."""

    def step(state, key):
        return prior.update(KEY, frozen, state, priors.Draws(draw(key, batch)))

    state = start(prior, frozen, jax.jit(draw, static_argnums=1)(KEY, 1000))
    keys = jax.random.split(jax.random.key(1), num_steps)
    state, _ = jax.jit(lambda state: jax.lax.scan(step, state, keys))(state)
    return priors.Law(prior, frozen, state)


@functools.cache
def learned(name):
    """The law of the prior that has learned the two Gaussians."""
    return learn(SMALL[name], toy(), draw_known, 600 if name != "mixture" else 300)


def log_density(law, eps=GRID):
    return np.asarray(jax.jit(lambda eps: law.logdensity(eps))(eps), np.float64)


def assert_follows(eps, log_p):
    """Holds a histogram of draws against log_p on the grid, by the chi-square test."""
    p = np.exp(log_p).reshape(120, 120)
    p /= p.sum()
    blocks = p.reshape(24, BLOCK, 24, BLOCK).sum((1, 3))
    edges = np.linspace(-6, 6, 25)
    seen, _, _ = np.histogram2d(*(np.ravel(e) for e in eps), bins=(edges, edges))
    num = len(eps[0])
    expected = num * blocks
    common = expected >= 5
    seen = np.append(seen[common], num - seen[common].sum())
    expected = np.append(expected[common], num - expected[common].sum())
    statistic = ((seen - expected) ** 2 / np.maximum(expected, 1)).sum()
    assert len(seen) > 25
    assert statistic < stats.chi2.ppf(0.999, len(seen) - 1), (statistic, len(seen))


@pytest.mark.parametrize("name", ["mixture", "diagonal", "vamp", "lars"])
def test_densities_integrate_to_one(name):
    law = learned(name.replace("diagonal", "mixture"))
    if name == "diagonal":
        prior = dataclasses.replace(SMALL["mixture"], full_below=1)
        law = learn(prior, toy(), draw_known, 100)
        assert law.state.params.scales.shape == (4, 2)
    log_p = log_density(law)
    total = np.exp(log_p).sum() * WIDTH**2
    # LARS's Z is an average of batches, with an error of .6%; others' is of rounding.
    assert total == pytest.approx(1, abs=2e-2 if name == "lars" else 1e-4)
    assert np.abs(log_p - log_standard_normal(GRID)).max() > 0.5  # it has learned


@pytest.mark.parametrize("name", ["mixture", "vamp", "lars"])
def test_draws_follow_the_density(name):
    law = learned(name)
    eps = jax.jit(lambda key: law.sample(key, 20_000))(jax.random.key(7))
    log_p = log_density(law)
    assert_follows(eps, log_p)
    with pytest.raises(AssertionError):  # the test can tell
        assert_follows((eps[0] + 0.05, eps[1]), log_p)


@pytest.mark.parametrize(
    ("name", "tolerance"),
    # Of the divergence in nats from the known law, on held-out draws, whose standard
    # error is .01 and less.
    [("mixture", 0.02), ("lars", 0.06), ("ncp", 0.06)],
)
def test_likelihood_rises_to_the_entropy_of_the_known_law(name, tolerance):
    eps = draw_known(jax.random.key(5), 1500)
    known = log_known(eps)
    assert (known - log_standard_normal(eps)).mean() > 0.5
    divergence = known - log_density(learned(name), eps)
    print(name, divergence.mean(), divergence.std() / np.sqrt(len(divergence)))
    assert divergence.mean() < tolerance


def test_mixture_recovers_a_known_one():
    prior = priors.Mixture(num_components=2, shrinkage=1e-3)
    state = learn(prior, toy(), draw_known, 400).state
    log_weights, means, scales = (np.asarray(x) for x in state.params)
    order = np.argsort(means[:, 0])
    covariances = scales @ scales.transpose(0, 2, 1)
    np.testing.assert_allclose(np.exp(log_weights[order]), WEIGHTS, atol=0.02)
    np.testing.assert_allclose(means[order], MEANS, atol=0.05)
    np.testing.assert_allclose(covariances[order], COVARIANCES, atol=0.03)
    assert prior.num_parameters(state) == 1 + 2 * 2 + 2 * 3


def test_mixture_of_one_is_at_the_moments_of_the_draws():
    prior = priors.Mixture(num_components=1, shrinkage=0.0, step_offset=1)
    draws = priors.Draws(draw_known(KEY, 500))
    state = start(prior, toy(), draws.eps)
    update = jax.jit(lambda state: prior.update(KEY, toy(), state, draws))
    state, _ = update(state)  # the first step is a whole one
    points = np.concatenate(draws.eps, axis=1)
    (mean,), (factor,) = state.params.means, state.params.scales
    np.testing.assert_allclose(mean, points.mean(0), atol=1e-5)
    np.testing.assert_allclose(factor @ factor.T, np.cov(points.T, ddof=0), atol=1e-5)


@pytest.mark.slow
def test_mixture_has_a_floor_where_draws_are_all_the_same():
    prior = priors.Mixture(num_components=3, shrinkage=0.01)
    eps = tuple(jnp.full((50, 1), 0.7) for _ in range(2))
    law = learn(prior, toy(), lambda key, num: eps, 600)
    variances = np.asarray((law.state.params.scales**2).sum(-1))
    assert variances.min() > 0.003  # .01 / (3 + .01), if one component has all weight
    assert np.isfinite(log_density(law, eps)).all()


def test_log_normals_are_those_of_another_library():
    rng = np.random.default_rng(0)
    points, means = rng.normal(size=(7, 3)), rng.normal(size=(5, 3))
    factors = np.tril(rng.normal(size=(5, 3, 3))) + 2 * np.eye(3)
    for scales in (factors, np.abs(rng.normal(size=(5, 3))) + 0.3):
        full = scales.ndim == 3
        got = mixture.log_normals(*(jnp.float32(x) for x in (points, means, scales)))
        for k in range(5):
            covariance = scales[k] @ scales[k].T if full else np.diag(scales[k] ** 2)
            expected = stats.multivariate_normal(means[k], covariance).logpdf(points)
            np.testing.assert_allclose(got[:, k], expected, rtol=1e-4)


def test_vamp_prior_is_the_mixture_of_posteriors_by_hand():
    frozen, prior = toy(), SMALL["vamp"]
    logits = jnp.array([-4.0, 0.0, 5.0]).reshape(3, 1, 1, 1)
    state = start(prior, frozen, draw_known(KEY, 3))
    law = priors.Law(prior, frozen, state.replace(ema=logits))

    def by_hand(backbone):  # q of the top layer of Vector, by its networks
        features = backbone.encode(jax.nn.sigmoid(logits))
        output = backbone.posteriors[1](features)
        return output[:, 0], jnp.exp(0.7 * jnp.tanh(output[:, 1] / 0.7))

    by_hand = nn.apply(by_hand, frozen.model.backbone)
    loc, scale = jax.jit(by_hand)(frozen.params.backbone)
    assert float(loc.max() - loc.min()) > 0.2  # the posteriors differ
    eps = draw_known(jax.random.key(3), 50)
    top = np.asarray(eps[1])  # z_L = eps_L: the top layer's prior is N(0, I)
    expected = np.log(stats.norm(loc, scale).pdf(top).mean(axis=1))
    np.testing.assert_allclose(
        log_density(law, eps) - log_standard_normal(eps[:1]), expected, atol=1e-5
    )
    drawn = jax.jit(lambda key: law.sample(key, 5000))(jax.random.key(4))[1][:, 0]
    mean = float(loc.mean())
    variance = float((scale**2 + loc**2).mean()) - mean**2
    assert drawn.mean() == pytest.approx(mean, abs=4 * np.sqrt(variance / 5000))
    assert drawn.var() == pytest.approx(variance, rel=0.1)


def test_vamp_prior_learns_where_its_pseudo_inputs_are():
    frozen = toy()
    x = jnp.array([0.03, 0.97]).reshape(2, 1, 1, 1)

    def draw(key, num):
        return frozen.draws(key, jnp.tile(x, (num // 2, 1, 1, 1))).eps

    # Starts amid the two, so that it must move; q of the two is then reached.
    prior = priors.VampPrior(num_components=2, num_steps=300, learning_rate=0.1)
    held = jax.jit(draw, static_argnums=1)(jax.random.key(8), 4000)
    state = start(prior, frozen, held, jnp.full((4, 1, 1, 1), 0.5))

    @jax.jit
    def mean(logits):
        return prior.log_tilt(frozen, state.replace(ema=logits), held).mean()

    known = mean(jax.scipy.special.logit(x))
    assert known - mean(state.ema) > 0.02
    keys = jax.random.split(KEY, 300)

    def step(state, key):
        return prior.update(KEY, frozen, state, priors.Draws(draw(key, 200)))

    state, info = jax.jit(lambda state: jax.lax.scan(step, state, keys))(state)
    assert known - mean(state.ema) < 0.005
    assert np.isfinite(info["loss"]).all()


def test_vamp_prior_says_what_it_lacks():
    prior = priors.VampPrior()
    assert prior.lacks(toy()) == ""
    assert "encoder" in prior.lacks(toy(encoder=False))
    model = jebm.build(
        {"image_shape": (8, 8, 1), "backbone": {"name": "nvae", "num_flows": 1}}
    )
    assert "normal" in prior.lacks(priors.Frozen(model, None))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vector", "ladder", "nvae"])
def test_vamp_prior_has_the_encoders_own_q(name):
    model = jebm.build({"image_shape": (8, 8, 1), "backbone": BACKBONES[name]})
    frozen = priors.freeze(model, random_params(model, scale=0.3))
    x = jax.random.uniform(KEY, (5, 8, 8, 1), minval=0.1, maxval=0.9)
    noise = frozen.noise(jax.random.key(1), 5)
    latents, laws, _ = chains.encode(model, frozen.params, x, noise)
    top = inverse_transport(latents, laws)[-1]
    q = priors.VampPrior().components(frozen, jax.scipy.special.logit(x))
    np.testing.assert_allclose(q.transport(noise[-1]), top, atol=1e-4)
    assert float(jnp.abs(q.loc).max()) > 0.01


BACKBONES = {
    "vector": {"latent_dims": (3, 2), "encoder_widths": (8,)},
    "ladder": {
        "name": "ladder",
        "latent_shapes": ((4, 4, 2), (3,)),
        "width": 6,
        "encoder_widths": (4, 4),
    },
    "nvae": {
        "name": "nvae",
        "groups": (1, 1),
        "latent_channels": 2,
        "width": 4,
        "encoder_width": 4,
        "preprocess_cells": 1,
        "postprocess_cells": 1,
        "encoder_cells": 1,
        "decoder_cells": 1,
    },
}


@pytest.mark.parametrize("max_tries", [1, 3, 100])
def test_lars_is_its_truncated_law_by_quadrature(max_tries):
    state = learned("lars").state
    prior = dataclasses.replace(SMALL["lars"], max_tries=max_tries)
    normal = np.exp(log_standard_normal(GRID)).astype(np.float64)
    logits = prior._network().apply(state.ema, jnp.concatenate(GRID, axis=1))
    a = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    z = (normal * a).sum() * WIDTH**2
    assert 0.02 < z < 0.6
    assert state.memory.averaged == pytest.approx(z, rel=0.02)

    def density(z):
        last = (1 - z) ** (max_tries - 1)
        return normal * ((1 - last) * a / z + last)

    law = priors.Law(prior, toy(), state)
    expected = np.log(density(float(state.memory.averaged)))
    np.testing.assert_allclose(log_density(law), expected, atol=1e-3)
    eps = jax.jit(lambda key: law.sample(key, 20_000))(jax.random.key(2))
    assert_follows(eps, np.log(density(z)))


def test_log_z_of_lars_is_what_an_error_of_its_rate_leaves():
    law = learned("lars")
    wrong = law.state.memory._replace(averaged=law.state.memory.averaged * 1.3)
    law = law.replace(
        state=law.state.replace(memory=wrong),
        prior=dataclasses.replace(law.prior, max_tries=1000),  # A is about 0
    )
    estimate = law.log_z(KEY)
    exact = np.log(np.exp(log_density(law)).sum() * WIDTH**2)
    assert exact < -0.2
    error = 4 * float(estimate.standard_error)
    assert float(estimate.value) == pytest.approx(exact, abs=error)
    assert estimate.standard_error < 0.02


class Known(priors.NCP):
    """NCP whose ratios are those of a known law, eps_2 first and then eps_1 given it.

    `factor` multiplies the lower ratio by exp(factor eps_2), which Z_1 must cancel.
    """

    factor = 0.0

    def log_ratio(self, params, k, own, above):
        own = own[..., 0]
        loc, scale = 0.6, 0.5
        extra = jnp.zeros(())
        if k == 0:
            loc, scale = -0.8 * above[..., 0], 0.7
            extra = self.factor * above[..., 0]
        log_p = jax.scipy.stats.norm.logpdf(own, loc, scale)
        return log_p - jax.scipy.stats.norm.logpdf(own) + extra


class Scaled(Known):
    factor = 1.0


def log_conditional(eps):
    """The log-density of `Known`."""
    lower, upper = (np.asarray(e)[:, 0] for e in eps)
    return stats.norm(0.6, 0.5).logpdf(upper) + stats.norm(-0.8 * upper, 0.7).logpdf(
        lower
    )


@pytest.mark.parametrize("kind", [pytest.param(Known, marks=pytest.mark.slow), Scaled])
def test_ncp_of_exact_ratios_is_the_known_conditional_law(kind):
    frozen, prior = toy(), kind(widths=(1,), num_proposals=300, num_normaliser=20_000)
    law = priors.Law(prior, frozen, start(prior, frozen, None))
    points = draw_known(KEY, 50)
    # Ratios spread by 1 to 3: Z_k of 20,000 proposals by .01 to .02.
    np.testing.assert_allclose(
        log_density(law, points), log_conditional(points), atol=0.06
    )
    eps = jax.jit(lambda key: law.sample(key, 2000))(jax.random.key(2))
    assert_follows(eps, log_conditional(GRID))


@pytest.mark.slow
def test_effort_brings_resampled_draws_nearer_to_the_law():
    prior = Known(widths=(1,), num_proposals=1)
    law = priors.Law(prior, toy(), start(prior, toy(), None))
    draw = jax.jit(law.sample, static_argnums=(1, 2))
    means = [float(draw(KEY, 2000, n)[1].mean()) for n in (1, 4, 64)]
    assert means[0] == pytest.approx(0, abs=0.08)  # N(0, I) itself
    assert 0.1 < means[1] < means[2]
    assert means[2] == pytest.approx(0.6, abs=0.05)


def test_ncp_by_langevin_leaves_the_normalisers_out():
    frozen = toy()
    exact, scaled = (
        kind(widths=(1,), by="langevin", chain_steps=100, step_size=0.6)
        for kind in (Known, Scaled)
    )
    state = start(exact, frozen, None)
    draw = lambda prior: jax.jit(lambda k: prior.sample(k, frozen, state, 4000))(KEY)  # noqa: E731
    assert_follows(draw(exact), log_conditional(GRID))
    # exp(eps_2) tilts N(.6, .5^2) to a mean of .6 + .25.
    assert draw(scaled)[1].mean() == pytest.approx(0.85, abs=0.04)


def test_ncp_that_has_learned_draws_its_law_by_quadrature():
    law = learned("ncp")
    lower, upper = LINE[:, None].astype(np.float32), LINE[:, None].astype(np.float32)
    ratio = jax.jit(lambda k, own, above: law.prior.log_ratio(law.state.ema, k, own, above), static_argnums=0)  # fmt: skip  # noqa: E501
    log_upper = ratio(1, upper, upper[:, :0]) + stats.norm.logpdf(LINE)
    log_upper -= np.log(np.exp(log_upper).sum() * WIDTH)
    log_lower = ratio(0, lower[:, None], upper[None]) + stats.norm.logpdf(LINE)[:, None]
    log_z = np.log(np.exp(log_lower).sum(axis=0) * WIDTH)
    log_p = (log_lower - log_z[None] + log_upper[None]).reshape(-1)
    eps = jax.jit(lambda key: law.sample(key, 3000))(jax.random.key(3))
    assert_follows(eps, log_p)
    some = np.arange(0, len(log_p), 97)[log_p[::97] > -12]
    got = log_density(law, tuple(e[some] for e in GRID))
    # Both Z_k by 2,048 proposals: ratios spread by 1 or less, and so .02 each.
    np.testing.assert_allclose(got, log_p[some], atol=0.08)
    estimate = jax.jit(law.log_z)(KEY)
    error = np.average(got - log_p[some], weights=np.exp(log_p[some]))
    assert float(estimate.value) == pytest.approx(error, abs=0.03)


def test_ncp_refuses_an_unknown_way_to_draw():
    with pytest.raises(ValueError, match="resampling"):
        priors.NCP(by="chance")


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 640])
def test_ncp_is_the_same_however_few_proposals_are_held(monkeypatch, chunk):
    from jebm.priors import ncp

    law = learned("ncp")
    law = law.replace(
        prior=dataclasses.replace(law.prior, num_proposals=13, num_normaliser=11)
    )
    eps = draw_known(KEY, 8)

    def both():
        return jax.jit(lambda key: (law.sample(key, 8), law.log_tilt(eps)))(KEY)

    expected = both()
    monkeypatch.setattr(ncp, "_NUMBERS", chunk)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), both(), expected
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_draw_does_not_depend_on_how_many_are_drawn(name):
    draw = jax.jit(learned(name).sample, static_argnums=1)
    few, many = draw(KEY, 3), draw(KEY, 5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b[:3], atol=1e-5), few, many
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_priors_are_of_any_shapes_and_of_float64(name, x64):
    model = jebm.build({"image_shape": (8, 8, 1), "backbone": BACKBONES["ladder"]})
    params = random_params(model, scale=0.3, dtype=jnp.float64)
    frozen, prior = priors.freeze(model, params), SMALL[name]
    prior = dataclasses.replace(
        prior, **({"full_below": 8} if name == "mixture" else {})
    )
    x = jnp.full((6, 8, 8, 1), 0.4)
    draws = jax.jit(lambda x: frozen.draws(KEY, x))(x)
    state = start(prior, frozen, *draws)
    update = jax.jit(lambda state, draws: prior.update(KEY, frozen, state, draws))
    for _ in range(2):
        state, info = update(state, draws)
    law = priors.Law(prior, frozen, state)
    eps = jax.jit(lambda key: law.sample(key, 3, 2))(KEY)
    value = jax.jit(law.log_tilt)(eps)
    assert [e.shape for e in eps] == [(3, 4, 4, 2), (3, 3)]
    assert {e.dtype for e in (*eps, value, info["loss"])} == {jnp.dtype("float64")}
    assert value.shape == (3,) and np.isfinite(value).all()
    floating = [
        x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)
    ]
    assert {x.dtype for x in floating} == {jnp.dtype("float64")}
    assert prior.num_parameters(state) > 0


@functools.cache
def frozen_digits():
    """The pretrained digits, and the images of both splits of its data."""
    splits = datasets.load(options.read(digits.get_config()).data)
    images = (jnp.asarray(to_unit(splits[name].images)) for name in ("train", "test"))
    return priors.freeze(*jebm.load_pretrained("digits")), *images


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prior", "num_steps", "least"),
    # Seen: 1.28, .08, .33 and .36 nats.
    [
        (priors.Mixture(num_components=20), 300, 1.0),
        (priors.VampPrior(num_components=20, num_steps=1000), 1000, 0.03),
        (priors.LARS(widths=(64, 64), num_steps=400, learning_rate=5e-3), 400, 0.2),
        (priors.NCP(widths=(64, 64), num_steps=400, learning_rate=5e-3), 400, 0.2),
    ],
)
def test_priors_learn_the_pretrained_digits(prior, num_steps, least):
    frozen, train, test = frozen_digits()

    def draw(key, num):  # a new draw of q each time: a mixture would learn fixed ones
        key_pick, key_draw = jax.random.split(key)
        index = jax.random.choice(key_pick, len(train), (num,))
        return frozen.draws(key_draw, train[index]).eps

    law = learn(prior, frozen, draw, num_steps)
    held = jax.jit(lambda x: frozen.draws(jax.random.key(9), x).eps)(test)
    tilt = jax.jit(law.log_tilt)(held)
    print(prior, float(tilt.mean()), float(tilt.std() / len(tilt) ** 0.5))
    assert tilt.mean() > least  # nats above the Gaussian, on held-out digits
    drawn = jax.jit(lambda key: law.sample(key, 100))(KEY)
    assert all(np.isfinite(e).all() for e in drawn)
