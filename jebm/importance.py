"""Log-normalisers from importance weights, and how far to trust them.

    log Z = log E[w],     its estimate the log of the mean of N weights

The standard error is that of the weights at hand. It says nothing of a mode that no
sample has found: hold log Z against an estimate backwards from samples of the model
(`jebm.partition.check_log_z`), and weights against the shape of their tail
(`pareto_k`).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

FEWEST_WEIGHTS = 25  # that `pareto_k` takes: a tail of five


class Estimate(NamedTuple):
    """A log-normaliser, in nats, and how far to trust it.

    The standard error covers the spread of the weights at hand, no more. It does not
    cover

      - modes that no particle has found: all weights may agree and miss most of Z;
      - the bias of the log of a mean, which lies below by about half the error squared;
      - heavy tails: where effective samples are few, the largest weight is yet to come,
        and value and error are both too small.

    `check_log_z` looks for the first, `pareto_k` for the last.
    """

    value: jax.Array
    standard_error: jax.Array  # of `value`, from the spread of the weights
    effective_samples: jax.Array  # (sum w)^2 / sum w^2, at most the number of particles


def estimate(log_weights: jax.Array) -> Estimate:
    """Takes the log of the mean weight, over the last axis.

    The standard error is the weights' own over their mean (the delta method). It covers
    neither modes that no sample has found, nor the bias of the log of a mean, and is
    too small where the effective samples are few: see `Estimate`. Where `pareto_k` of
    the same weights is above .7, do not trust it.

    Args:
      log_weights: log w, [..., N].

    Returns:
      An `Estimate` of fields [...], nats. One weight has an infinite error.

    Example:
      >>> result = estimate(jnp.log(jnp.array([1.0, 3.0])))
      >>> [round(float(value), 4) for value in result]
      [0.6931, 0.5, 1.6]
    """
    num = log_weights.shape[-1]
    value = jax.nn.logsumexp(log_weights, axis=-1) - jnp.log(num)
    relative = jnp.exp(log_weights - value[..., None])  # of mean 1
    error = jnp.std(relative, axis=-1, ddof=1) / num**0.5 if num > 1 else jnp.inf
    return Estimate(value, error + 0 * value, num / jnp.mean(relative**2, axis=-1))


def pareto_k(log_weights: jax.Array) -> jax.Array:
    """Estimates the Pareto shape k of the weights' upper tail, over the last axis.

    Weights with a tail of shape k have moments below 1 / k alone: from k = 1/2 on no
    variance, from 1 on no mean. Above .7, and of N < 2,200 weights above
    1 - 1 / log10(N), neither their mean nor its standard error can be trusted. Of 1,000
    Pareto weights, an interval of two errors holds the log of the mean in 92% at
    k = .5, in 74% at .7 and in 32% at .9, at some 450, 140 and 40 effective samples. A
    low k does not tell of modes that no sample has found.

    The estimator fits a generalised Pareto law to the min(N / 5, 3 sqrt(N)) largest
    weights, less the next one: it averages theta = -k / sigma over a grid, weighed by
    the profile likelihood (Zhang and Stephens 2009, Technometrics 51, 316), and draws k
    to 1/2 as by ten more weights (arXiv 1507.02646).

    Args:
      log_weights: log w, [..., N], up to a constant.

    Returns:
      k, [...]. -inf where the largest weights are all equal, nan where the largest is
      not finite.

    Raises:
      ValueError: for fewer than 25 weights, whose tail is less than five.

    Example:
      >>> u = jnp.linspace(0.0005, 0.9995, 1000)
      >>> log_w = -0.7 * jnp.log(u)  # of a Pareto law of k = .7
      >>> round(pareto_k(log_w).item(), 1)
      0.7
    """
    num = log_weights.shape[-1] if log_weights.ndim else 0
    if num < FEWEST_WEIGHTS:
        raise ValueError(
            f"log_weights must hold at least {FEWEST_WEIGHTS} weights on its last "
            f"axis, got shape {log_weights.shape}"
        )
    return _pareto_k(log_weights)


@jax.jit
@functools.partial(jnp.vectorize, signature="(n)->()")
def _pareto_k(log_weights):
    num = log_weights.shape[0]
    num_tail = int(min(num / 5, 3 * num**0.5))
    largest = jnp.flip(jax.lax.top_k(log_weights, num_tail + 1)[0])
    weights = jnp.exp(largest - largest[-1])
    k = _pareto_shape(weights[1:] - weights[0])
    return jnp.where(jnp.isfinite(log_weights.max()), k, jnp.nan)


def _pareto_shape(x):
    """Fits k of a generalised Pareto law to rising x >= 0, [M]; Zhang and Stephens."""
    num, small = len(x), float(jnp.finfo(x.dtype).tiny) ** 0.5
    num_grid, top = 30 + math.isqrt(num), x[-1]
    x = x / jnp.where(top > 0, top, 1)  # the shape does not depend on the scale
    # A floor, for lower quartiles too small to divide by.
    quartile = jnp.maximum(x[int(num / 4 + 0.5) - 1], small)
    grid = jnp.arange(1, num_grid + 1, dtype=x.dtype) - 0.5
    theta = 1 + (1 - jnp.sqrt(num_grid / grid)) / (3 * quartile)
    theta = jnp.where(theta == 0, small, theta)  # an exponential law, as a limit
    minus_k = -jnp.log1p(-theta[:, None] * x[None]).mean(axis=1)
    log_likelihood = num * (jnp.log(theta / minus_k) + minus_k - 1)
    mean = (jax.nn.softmax(log_likelihood) * theta).sum()
    k = jnp.log1p(-mean * x).mean()
    k = (num * k + _PRIOR_WEIGHTS * 0.5) / (num + _PRIOR_WEIGHTS)
    return jnp.where(top > 0, k, -jnp.inf)


_PRIOR_WEIGHTS = 10  # that k = 1/2 counts for
