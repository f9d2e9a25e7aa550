import jax.numpy as jnp
import numpy as np
import pytest
from arviz_stats.base import array_stats

from jebm import importance


def pareto(k, shape, seed=0):
    """log of generalised Pareto samples of scale 1."""
    u = np.random.default_rng(seed).uniform(size=shape)
    return np.log(np.expm1(-k * np.log(u)) / k)


# The estimator draws k to 1/2 as by ten of the 3 sqrt(N) = 300 weights of the tail.
@pytest.mark.parametrize("k", [-0.3, 0.2, 0.5, 0.7, 1.0, 2.0])
def test_k_is_that_of_generalised_pareto_samples(k, x64):
    found = importance.pareto_k(jnp.asarray(pareto(k, (100, 10_000))))
    expected = (300 * k + 10 * 0.5) / 310
    error = np.std(found) / 10
    assert error < 0.02
    # Quasi-Bayesian and of a finite tail: a bias below .02.
    assert abs(np.mean(found) - expected) < 4 * error + 0.02


@pytest.mark.slow
@pytest.mark.parametrize("num", [25, 26, 100, 226, 1000])
def test_k_is_that_of_arviz(num, x64):
    log_w = np.concatenate(
        [pareto(k, (5, num)) for k in (-0.3, 0.5, 1.0)]
        + [s * np.random.default_rng(1).normal(size=(5, num)) for s in (0.1, 3, 20)]
    )
    expected = [array_stats.psislw(-w)[1] for w in log_w]  # it takes log q / p
    found = importance.pareto_k(jnp.asarray(log_w))
    np.testing.assert_allclose(found, expected, atol=1e-9)
    low = importance.pareto_k(jnp.asarray(log_w, jnp.float32))
    moderate = np.array(expected) < 3
    np.testing.assert_allclose(low[moderate], found[moderate], atol=1e-3)


def test_k_needs_no_scale_and_keeps_its_head_at_the_ends():
    log_w = jnp.asarray(pareto(0.6, (2, 3, 200)), jnp.float32)
    found = importance.pareto_k(log_w)
    assert found.shape == (2, 3)
    np.testing.assert_allclose(importance.pareto_k(log_w + 400), found, atol=1e-2)
    same = jnp.zeros(200)
    assert importance.pareto_k(same) == -jnp.inf
    assert importance.pareto_k(same.at[0].set(-jnp.inf)) == -jnp.inf
    assert importance.pareto_k(same.at[0].set(30.0)) > 0.7
    for bad in (jnp.nan, jnp.inf):
        assert jnp.isnan(importance.pareto_k(same.at[0].set(bad)))
    assert importance.pareto_k(40 * log_w[0, 0]) > 0.7
    with pytest.raises(ValueError, match=r"at least 25 weights .* got shape \(24,\)"):
        importance.pareto_k(same[:24])


# Shares that the docstring of `pareto_k` tells; binomial errors of 2,000 are .011.
@pytest.mark.parametrize(
    ("k", "coverage", "effective", "above"),
    [(0.5, 0.92, 450, 0.1), (0.7, 0.74, 140, 0.4), (0.9, 0.32, 40, 0.8)],
)
def test_errors_are_too_small_where_k_is_high(k, coverage, effective, above, x64):
    u = np.random.default_rng(1).uniform(size=(2000, 1000))
    log_w = jnp.asarray(-k * np.log(u))
    found = importance.estimate(log_w)
    held = np.abs(found.value + np.log(1 - k)) < 2 * found.standard_error
    assert np.mean(held) == pytest.approx(coverage, abs=0.045)
    assert np.median(found.effective_samples) == pytest.approx(effective, rel=0.1)
    share = np.mean(importance.pareto_k(log_w) > 0.7)
    assert share == pytest.approx(above, abs=0.1)
