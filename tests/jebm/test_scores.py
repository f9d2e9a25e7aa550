import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jebm
from jebm import scores
from jebm.chains import example_keys
from jebm.distributions import Normal
from jebm.objectives import variational_terms
from tests.models import random_params, small_model

# z_2 ~ N(0, 1), z_1 ~ N(SLOPE z_2, SPREAD), x ~ N(PIXEL . z, NOISE), and q linear.
SLOPE, SPREAD, NOISE = 0.8, 0.6, 0.5
PIXEL = np.array([0.7, 0.4])
TILT = np.array([0.9, 0.5])  # E(z) = 1/2 sum_i TILT_i z_i^2
X = 0.3


@dataclasses.dataclass(frozen=True)
class Linear:
    """q(z_2|x) = N(top x, top_scale), q(z_1|z_2,x) = N(low x + pull z_2, low_scale)."""

    top: float
    top_scale: float
    low: float
    pull: float
    low_scale: float

    def joint(self):
        """Mean and covariance of (z_1, z_2) given X."""
        mean = np.array([self.low * X + self.pull * self.top * X, self.top * X])
        root = np.array(
            [[self.low_scale, self.pull * self.top_scale], [0.0, self.top_scale]]
        )
        return mean, root @ root.T


class LinearHierarchy(nn.Module):
    """The hierarchy above, nothing learned."""

    q: Linear
    latent_shapes = ((1,), (1,))
    has_encoder = True
    encoder_modules = ()

    def start(self, batch):
        return jnp.full((batch, 0), 0.0)  # weakly typed

    def prior(self, i, state):
        if i == 1:
            return Normal(*(jnp.full((state.shape[0], 1), v) for v in (0.0, 1.0)))
        return Normal(SLOPE * state, jnp.full_like(state, SPREAD))

    def merge(self, i, state, z):
        return jnp.concatenate([z, state], axis=1)

    def decode(self, state):
        return (state @ jnp.asarray(PIXEL, state.dtype)).reshape(-1, 1, 1, 1)

    def encode(self, x):
        return x.reshape(-1, 1)

    def posterior(self, i, state, features, prior, noise):
        if i == 1:
            loc, scale = self.q.top * features, self.q.top_scale
        else:
            loc, scale = self.q.low * features + self.q.pull * state, self.q.low_scale
        q = Normal(loc, jnp.full_like(loc, scale))
        z = q.transport(noise)
        return z, q.log_prob(z)


class Quadratic(nn.Module):
    """E(z) = 1/2 sum_i TILT_i z_i^2."""

    def __call__(self, latents):
        return sum(
            0.5 * t * z[:, 0] ** 2 for t, z in zip(TILT.tolist(), latents, strict=True)
        )


@dataclasses.dataclass(frozen=True)
class Unbounded:
    """N(x; output, NOISE)."""

    def num_outputs(self, channels):
        return channels

    def log_prob(self, output, x):
        return Normal(output, jnp.full_like(output, NOISE)).log_prob(x)


STEP = 0.3
CHAINS = jebm.Chains(
    prior=jebm.Langevin(num_steps=80, step_size=STEP),
    posterior=jebm.Langevin(num_steps=0, start="encoder"),
)


def precision(tilt):
    """Of (z_1, z_2) under the tilted prior."""
    cross = -SLOPE / SPREAD**2
    p = np.array([[SPREAD**-2, cross], [cross, 1 + SLOPE**2 / SPREAD**2]])
    return p + np.diag(tilt)


def exact_posterior(tilt):
    """p(z | x) as a `Linear`."""
    q = precision(tilt) + np.outer(PIXEL, PIXEL) / NOISE**2
    covariance = np.linalg.inv(q)
    top = (covariance @ PIXEL)[1] / NOISE**2
    low, pull = PIXEL[0] / NOISE**2 / q[0, 0], -q[0, 1] / q[0, 0]
    scales = covariance[1, 1] ** 0.5, q[0, 0] ** -0.5
    # Python's floats are weakly typed, NumPy's are not.
    return Linear(*map(float, (top, scales[0], low, pull, scales[1])))


def linear_model(q, tilted):
    energy = Quadratic() if tilted else None
    model = jebm.Model((1, 1, 1), LinearHierarchy(q), energy, Unbounded(), CHAINS)
    return model, jebm.init(jax.random.key(0), model)


def images(num):
    return jnp.full((num, 1, 1, 1), X)


def expected_log_normal(weights, offset, scale, mean, covariance):
    """E[log N(offset + weights . z; 0, scale)] for z ~ N(mean, covariance)."""
    weights = np.asarray(weights)
    square = (offset + weights @ mean) ** 2 + weights @ covariance @ weights
    return -0.5 * np.log(2 * np.pi * scale**2) - square / (2 * scale**2)


def with_conditional_prior(mean, covariance, tilt):
    """The law of (z_1, z_2) with z_1 drawn anew by the chain given z_2."""
    stiffness = 1 + tilt[0] * SPREAD**2  # of the conditional, in eps-space
    slope = SLOPE / stiffness
    # Stationary variance of the chain without correction; 1 / stiffness as STEP -> 0.
    variance = SPREAD**2 / (stiffness * (1 - STEP**2 * stiffness / 4))
    if not tilt[0]:
        variance = SPREAD**2  # drawn exactly, without a chain
    top = covariance[1, 1]
    return np.array([slope * mean[1], mean[1]]), np.array(
        [[slope**2 * top + variance, slope * top], [slope * top, top]]
    )


def expected_terms(mean, covariance, tilt):
    """E of log p(x|z), log p(z_1|z_2), log p(z_2) and E(z)."""
    second_moments = np.diag(covariance) + mean**2
    return (
        expected_log_normal(-PIXEL, X, NOISE, mean, covariance),
        expected_log_normal([1.0, -SLOPE], 0.0, SPREAD, mean, covariance),
        expected_log_normal([0.0, 1.0], 0.0, 1.0, mean, covariance),
        0.5 * tilt @ second_moments,
    )


def assert_mean(values, expected):
    """Within 4 standard errors, which must be small."""
    error = np.std(values) / np.sqrt(len(values))
    assert error < 0.02
    assert abs(np.mean(values) - expected) < 4 * error


Q = Linear(top=1.1, top_scale=0.5, low=0.9, pull=0.3, low_scale=0.4)
NUM = 20_000


@pytest.mark.slow
@pytest.mark.parametrize("tilted", [False, True])
@pytest.mark.parametrize("k", [0, 1])
def test_every_term_of_a_score_is_that_of_a_linear_gaussian_hierarchy(k, tilted, x64):
    model, params = linear_model(Q, tilted)
    tilt = TILT if tilted else np.zeros(2)
    law = Q.joint() if k == 0 else with_conditional_prior(*Q.joint(), tilt)
    log_x, log_1, log_2, energy = expected_terms(*law, tilt)
    key = jax.random.key(3)
    terms = scores.score_terms(key, model, params, images(NUM), k)
    assert_mean(terms.log_likelihood, log_x)
    assert_mean(terms.log_prior, log_1 + log_2)
    if tilted:
        assert_mean(terms.energy, energy)
    else:
        np.testing.assert_array_equal(terms.energy, 0)
    value = scores.score(key, model, params, images(NUM), k)
    assert_mean(value, log_x + log_1 + log_2 - energy)


def test_the_ratio_is_of_the_same_upper_layers(x64):
    model, params = linear_model(Q, tilted=True)
    key, x = jax.random.key(0), images(50)
    ratio = scores.log_likelihood_ratio(key, model, params, x, 1)
    terms = [scores.score_terms(key, model, params, x, k) for k in (0, 1)]
    np.testing.assert_allclose(ratio, terms[1].loss() - terms[0].loss(), rtol=1e-12)
    # log p(z_2) and E_2(z_2) cancel where z_2 is the same, so what is left varies less.
    other = scores.score(jax.random.key(1), model, params, x, 1)
    assert np.var(ratio) < np.var(-terms[0].loss() - other)


@pytest.mark.parametrize("k", [0, 1])
def test_elbo_is_that_of_hvae_where_there_is_no_energy(k, x64):
    model, params = linear_model(Q, tilted=False)
    log_x, log_1, log_2, _ = expected_terms(
        *(Q.joint() if k == 0 else with_conditional_prior(*Q.joint(), np.zeros(2))),
        np.zeros(2),
    )
    entropy = stats.norm.entropy(scale=Q.top_scale)
    expected = log_x + log_2 + entropy
    if k == 0:
        expected += log_1 + stats.norm.entropy(scale=Q.low_scale)
    values = scores.elbo(jax.random.key(0), model, params, images(NUM), k)
    assert_mean(values, expected)


@pytest.mark.parametrize("tilted", [False, True])
@pytest.mark.parametrize("importance", [False, True])
def test_elbo_is_log_p_at_the_exact_posterior(tilted, importance, x64):
    tilt = TILT if tilted else np.zeros(2)
    model, params = linear_model(exact_posterior(tilt), tilted)
    p = precision(tilt)
    variance = PIXEL @ np.linalg.inv(p) @ PIXEL + NOISE**2
    untilted = np.linalg.det(precision(np.zeros(2)))
    log_z = 0.5 * np.log(untilted / np.linalg.det(p))
    values = scores.elbo(
        *(jax.random.key(0), model, params, images(5)),
        num_samples=3,
        importance=importance,
        log_z=log_z if tilted else None,
    )
    expected = stats.norm.logpdf(X, scale=np.sqrt(variance))
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_importance_weights_reach_log_p_from_below(x64):
    model, params = linear_model(Q, tilted=False)
    variance = PIXEL @ np.linalg.inv(precision(np.zeros(2))) @ PIXEL + NOISE**2
    exact = stats.norm.logpdf(X, scale=np.sqrt(variance))

    def mean(num_samples):
        return scores.elbo(
            *(jax.random.key(0), model, params, images(2000)),
            num_samples=num_samples,
            importance=True,
        ).mean()

    one, ten, many = mean(1), mean(10), mean(300)
    assert one < ten - 0.05 < many < exact + 0.01
    assert many > exact - 0.02


def encoder_model(energy):
    return small_model(
        (2, 2),
        encoder_widths=(4,),
        energy=energy,
        chains={
            "prior": {"num_steps": 3},
            "posterior": {"start": "encoder", "num_steps": 0},
        },
    )


@pytest.mark.slow
def test_elbo_of_one_sample_is_minus_the_variational_loss(x64):
    model = encoder_model({"widths": (6,), "activation": "tanh"})
    params = random_params(model, dtype=jnp.float64)
    key, x = jax.random.key(0), jnp.full((4, 1, 1, 1), 0.5)

    def losses(seed):
        keys = example_keys(jax.random.key(seed), jnp.arange(4000))
        many = jnp.full((4000, 1, 1, 1), 0.5)
        return variational_terms(model, params, many, keys).loss()

    value = scores.elbo(key, model, params, x, num_samples=4000, log_z=0.0)
    loss = losses(1)
    error = np.std(loss) * np.sqrt(2 / 4000)
    np.testing.assert_allclose(value, -loss.mean(), atol=4 * error)


def test_an_image_is_scored_alike_alone_and_among_others(x64):
    model = encoder_model({"widths": (6,), "activation": "tanh"})
    params = random_params(model, dtype=jnp.float64)
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(3, 1, 1, 1)))
    key = jax.random.key(0)
    together = scores.score(key, model, params, x, 1, num_samples=2)
    alone = scores.score(key, model, params, x[:1], 1, num_samples=2)
    np.testing.assert_allclose(together[:1], alone, rtol=1e-10)
    assert len(set(np.asarray(together).tolist())) == 3


@pytest.mark.parametrize(
    ("function", "changes", "words"),
    [
        ("score", {"k": 2}, "k must be an integer from 0 to 1, .* got 2"),
        ("score", {"k": -1}, "k must be an integer from 0 to 1, .* got -1"),
        ("score", {"k": 1.0}, "k must be an integer from 0 to 1, .* got 1.0"),
        ("score", {"num_samples": 0}, "num_samples must be a positive integer, got 0"),
        ("score", {"x": np.zeros((2, 3, 1, 1))}, "x must have shape"),
        ("log_likelihood_ratio", {"k": 0}, "k must be at least 1"),
        ("elbo", {"k": 2}, "k must be an integer from 0 to 1, .* got 2"),
        ("elbo", {"k": 1}, "elbo is defined at k = 0 alone, got k=1"),
        ("elbo", {"k": 1, "importance": True}, "importance weighting .* got k=1"),
        ("elbo", {}, "log_z must be given for a model with an energy"),
    ],
)
def test_wrong_arguments_are_refused(function, changes, words):
    model = encoder_model({"widths": (6,), "activation": "tanh"})
    params = jebm.init(jax.random.key(0), model)
    arguments = {"x": jnp.zeros((2, 1, 1, 1)), "k": 0, **changes}
    with pytest.raises(ValueError, match=words):
        getattr(scores, function)(jax.random.key(0), model, params, **arguments)


@pytest.mark.parametrize(
    ("chain", "words"),
    [
        ({"start": "normal", "num_steps": 5}, "does not start at a draw of an encoder"),
        ({"start": "mode", "num_steps": 0}, "does not start at a draw of an encoder"),
        ({"start": "encoder", "num_steps": 5}, "not known after 5 steps"),
    ],
)
def test_elbo_is_refused_where_log_q_is_not_known(chain, words):
    model = encoder_model(None)
    chains = dataclasses.replace(model.chains, posterior=jebm.Langevin(**chain))
    model = dataclasses.replace(model, chains=chains)
    params = jebm.init(jax.random.key(0), model)
    x = jnp.zeros((2, 1, 1, 1))
    with pytest.raises(ValueError, match=words):
        scores.elbo(jax.random.key(0), model, params, x)


def test_log_z_of_a_gaussian_prior_is_not_taken():
    model = encoder_model(None)
    params = jebm.init(jax.random.key(0), model)
    x = jnp.zeros((2, 1, 1, 1))
    with pytest.raises(ValueError, match="log_z is 0 for a Gaussian prior"):
        scores.elbo(jax.random.key(0), model, params, x, log_z=1.0)
