import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from jebm.distributions import Bernoulli, Gaussian, Normal

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


def test_normal_samples_have_its_moments_and_are_each_of_their_key(x64):
    num, loc, scale = 50_000, np.array([[-1.0, 2.0]]), np.array([[0.1, 3.0]])
    normal = Normal(jnp.broadcast_to(loc, (num, 2)), jnp.asarray(scale))
    keys = jax.random.split(jax.random.key(0), num)
    z = np.asarray(normal.sample(keys))
    assert z.shape == (num, 2)
    assert z.dtype == np.float64
    noise = (z - loc) / scale
    # Independent draws: the errors of mean, variance and correlation, times four.
    assert (abs(noise.mean(0)) < 4 / np.sqrt(num)).all()
    assert (abs(noise.var(0) - 1) < 4 * np.sqrt(2 / num)).all()
    assert abs(np.mean(noise[:, 0] * noise[:, 1])) < 4 / np.sqrt(num)
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-4
    again = Normal(normal.loc[:3] + 1, jnp.asarray(2 * scale)).sample(keys[:3])
    np.testing.assert_allclose((again - (loc + 1)) / (2 * scale), noise[:3], rtol=1e-9)


def test_normal_samples_differentiate_to_one_and_the_noise(x64):
    keys = jax.random.split(jax.random.key(0), 4)
    loc, scale = (jnp.asarray(RNG.uniform(0.5, 2, (4, 3))) for _ in range(2))
    z = Normal(loc, scale).sample(keys)
    grads = jax.grad(lambda n: n.sample(keys).sum())(Normal(loc, scale))
    np.testing.assert_allclose(grads.loc, np.ones((4, 3)))
    np.testing.assert_allclose(grads.scale, (z - loc) / scale, rtol=1e-9)


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
