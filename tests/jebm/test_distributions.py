import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from jebm.distributions import Normal
from jebm.likelihoods import (
    Bernoulli,
    Gaussian,
    LearnedGaussian,
    LogisticMixture,
    reduce_bit_depth,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 3, 2), (5, 1)])
def test_normal_log_prob_is_scipys_summed_over_all_but_the_first_axis(shape, x64):
    loc, value = RNG.normal(size=(2, *shape))
    scale = RNG.uniform(0.1, 3, shape)
    expected = stats.norm.logpdf(value, loc, scale)
    got = Normal(jnp.array(loc), jnp.array(scale)).log_prob(jnp.array(value))
    np.testing.assert_allclose(got, expected.reshape(shape[0], -1).sum(1), rtol=1e-12)


def test_normal_log_prob_gradients_match_finite_differences(x64):
    args = [jnp.array(RNG.uniform(0.5, 2, (2, 3))) for _ in range(3)]

    def total(loc, scale, value):
        return Normal(loc, scale).log_prob(value).sum()

    check_grads(total, args, order=2, modes=["rev"], rtol=1e-6)


def test_normal_transports_standard_normal_noise_to_itself(x64):
    loc, noise = RNG.normal(size=(2, 4, 3))
    scale = RNG.uniform(0.5, 2, (4, 3))
    z = Normal(jnp.asarray(loc), jnp.asarray(scale)).transport(jnp.asarray(noise))
    np.testing.assert_allclose(z, loc + scale * noise, rtol=1e-12)
    # Its density is the noise's over the Jacobian.
    expected = stats.norm.logpdf(noise) - np.log(scale)
    found = Normal(jnp.asarray(loc), jnp.asarray(scale)).log_prob(z)
    np.testing.assert_allclose(found, expected.sum(axis=1), rtol=1e-10)


def test_gaussian_likelihood_is_a_density_of_x_on_the_unit_scale(x64):
    output, x = RNG.normal(size=(2, 3, 4, 4, 1))
    mean = 1 / (1 + np.exp(-output))
    expected = stats.norm.logpdf(x, mean, 0.15).reshape(3, -1).sum(1)
    got = Gaussian(scale=0.15).log_prob(jnp.array(output), jnp.array(x))
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    np.testing.assert_allclose(Gaussian().mean(jnp.array(output)), mean, rtol=1e-12)


def test_bernoulli_log_prob_is_scipys(x64):
    logits = RNG.normal(size=(3, 2, 2, 1)) * 5
    x = RNG.integers(0, 2, (3, 2, 2, 1))
    expected = stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-logits)))
    got = Bernoulli().log_prob(jnp.array(logits), jnp.array(x, float))
    np.testing.assert_allclose(got, expected.reshape(3, -1).sum(1), rtol=1e-10)


def test_bernoulli_log_prob_and_gradient_stay_finite_at_extreme_logits():
    logits = jnp.array([[[[1e4]]], [[[-1e4]]]])
    x = jnp.array([[[[0.0]]], [[[0.0]]]])
    np.testing.assert_allclose(Bernoulli().log_prob(logits, x), [-1e4, 0])
    grad = jax.grad(lambda o: Bernoulli().log_prob(o, x).sum())(logits)
    np.testing.assert_allclose(grad.ravel(), [-1, 0])


def test_gaussian_refuses_a_scale_that_is_not_positive():
    with pytest.raises(ValueError, match="scale must be positive, got 0"):
        Gaussian(scale=0)


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "bits"), [(1, 8), (1, 3), (2, 3), (3, 2), (5, 1)])
def test_logistic_mixture_is_a_law_of_all_colours(channels, bits, x64):
    likelihood = LogisticMixture(num_mixtures=3, bits=bits)
    levels = np.arange(2**bits) / (2**bits - 1)
    colours = np.stack(np.meshgrid(*[levels] * channels), -1).reshape(
        -1, 1, 1, channels
    )
    output = 2 * RNG.normal(size=(1, 1, 1, likelihood.num_outputs(channels)))
    output = jnp.asarray(np.repeat(output, len(colours), axis=0))
    log_prob = likelihood.log_prob(output, jnp.asarray(colours))
    np.testing.assert_allclose(np.exp(log_prob).sum(), 1, rtol=1e-10)


def test_logistic_mixture_is_scipys(x64):
    """One colour in the middle of its range, by the distribution function."""
    likelihood = LogisticMixture(num_mixtures=2)
    logits, means, log_scales = [0.3, -1.0], [0.2, -0.4], [-2.0, -9.0]
    output = jnp.asarray([*logits, *means, *log_scales]).reshape(1, 1, 1, -1)
    weights = np.exp(logits) / np.exp(logits).sum()
    scales = np.exp(np.maximum(log_scales, -7))
    centre, width = 2 * 100 / 255 - 1, 1 / 255
    upper, lower = (
        stats.logistic.cdf(centre + side, means, scales) for side in (width, -width)
    )
    x = jnp.full((1, 1, 1, 1), 100 / 255)
    expected = np.log((weights * (upper - lower)).sum())
    np.testing.assert_allclose(likelihood.log_prob(output, x)[0], expected, rtol=1e-9)
    np.testing.assert_allclose(
        likelihood.mean(output).item(), ((weights * means).sum() + 1) / 2, rtol=1e-12
    )


def test_logistic_mixture_carries_red_over_to_green_and_both_to_blue(x64):
    likelihood = LogisticMixture(num_mixtures=1)
    output = np.zeros(10)
    output[1:4] = 0.5, 0.1, -0.3
    output[7:] = np.arctanh([0.2, 0.4, 0.6])
    mean = 2 * likelihood.mean(jnp.asarray(output).reshape(1, 1, 1, -1)).ravel() - 1
    green = 0.1 + 0.2 * 0.5
    np.testing.assert_allclose(mean, [0.5, green, -0.3 + 0.4 * 0.5 + 0.6 * green])


@pytest.mark.slow
def test_logistic_mixture_has_finite_gradients_however_sharp_or_wide(x64):
    likelihood = LogisticMixture(num_mixtures=2)
    x = jnp.asarray(RNG.integers(0, 256, (4, 2, 2, 3)) / 255)
    for size in (1e-3, 1.0, 30.0, 300.0):
        output = jnp.asarray(size * RNG.normal(size=(4, 2, 2, 20)))
        grad = jax.grad(lambda o: likelihood.log_prob(o, x).sum())(output)
        assert np.isfinite(grad).all(), size


@pytest.mark.parametrize("floor", [None, -0.5])
def test_learned_gaussian_is_scipys_on_the_unit_scale(floor, x64):
    likelihood = LearnedGaussian(min_log_scale=floor)
    output = RNG.normal(size=(3, 2, 2, 4))
    x = RNG.uniform(size=(3, 2, 2, 2))
    loc, log_scale = 5 * np.tanh(output / 5)[..., :2], 5 * np.tanh(output / 5)[..., 2:]
    scale = np.exp(log_scale if floor is None else np.maximum(log_scale, floor)) + 0.01
    expected = stats.norm.logpdf(x, (loc + 1) / 2, scale / 2).sum((1, 2, 3))
    got = likelihood.log_prob(jnp.asarray(output), jnp.asarray(x))
    np.testing.assert_allclose(got, expected, rtol=1e-10)


@pytest.mark.parametrize("bits", range(1, 9))
def test_quantised_colours_are_evenly_spaced_and_stay(bits, x64):
    colours = jnp.arange(256) / 255
    found = reduce_bit_depth(colours, bits)
    levels = np.arange(2**bits) / (2**bits - 1)
    expected = np.repeat(levels, 2 ** (8 - bits))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(reduce_bit_depth(found, bits), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LogisticMixture(num_mixtures=0), "num_mixtures must be at least 1"),
        (lambda: LogisticMixture(bits=9), r"bits must lie in \[1, 8\]"),
    ],
)
def test_mixture_that_cannot_be_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
