"""A mixture of Gaussians on eps, by online EM.

    p(eps) = sum_k w_k N(eps; m_k, C_k)
    s <- s + t^-a (mean over the batch of (r_k, r_k eps, r_k eps eps^T) - s)

The responsibilities r_k of a batch move running averages s of the sufficient
statistics, from which weights, means and covariances follow in closed form.
(arXiv 0712.4273)
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jebm.chains import example_keys
from jebm.hierarchy import log_standard_normal
from jebm.priors.base import Prior


class Components(NamedTuple):
    """The Gaussians of a mixture."""

    log_weights: jax.Array  # [K]
    means: jax.Array  # [K, D]
    scales: jax.Array  # Cholesky factors [K, D, D], or standard deviations [K, D]


class Statistics(NamedTuple):
    """Means over draws: of r_k, of r_k eps, and of its squares or outer products."""

    weights: jax.Array  # [K]
    sums: jax.Array  # [K, D]
    squares: jax.Array  # [K, D, D] or [K, D]


@struct.dataclass
class MixtureState:
    """What online EM carries from one update to the next."""

    step: jax.Array  # int32 [], updates taken
    statistics: Statistics
    params: Components  # that follow from the statistics


@dataclasses.dataclass(frozen=True)
class Mixture(Prior):
    """K Gaussians on eps, all layers side by side.

    Attributes:
      num_components: K.
      full_below: up to so many units of eps covariances are full; beyond, diagonal.
      step_decay: a, above 1/2 and up to 1.
      step_offset: the first t; at 20 the first step is a sixth.
      shrinkage: draws of variance 1 around its own mean that each component is taken to
        have seen, as a share of 1 / K. It is the floor of the covariances: no variance
        falls below about this for a component of weight 1 / K.

    Example:
      >>> import jebm
      >>> frozen = jebm.priors.freeze(*jebm.load_pretrained("digits"))
      >>> draws = jebm.priors.Draws(frozen.noise(jax.random.key(0), 8))
      >>> prior = Mixture(num_components=4)
      >>> state = prior.init(jax.random.key(1), frozen, draws)
      >>> state, info = prior.update(jax.random.key(2), frozen, state, draws)
      >>> prior.sample(jax.random.key(3), frozen, state, 5)[0].shape
      (5, 10)
    """

    cannot = "follow a layer's shape: its pieces are Gaussian"

    num_components: int = 100
    full_below: int = 64
    step_decay: float = 0.6
    step_offset: int = 20
    shrinkage: float = 0.1

    def init(self, key, frozen, draws) -> MixtureState:
        """Starts means at draws, each with the variances of all draws."""
        points = frozen.flat(draws.eps)
        key_pick, key_move = jax.random.split(key)
        order = jax.random.permutation(key_pick, len(points))
        means = points[order[jnp.arange(self.num_components) % len(points)]]
        variances = points.var(axis=0) + self.shrinkage
        # Apart from each other, where there are fewer draws than components.
        means += 0.1 * jnp.sqrt(variances)[None] * jax.random.normal(
            key_move, means.shape, means.dtype
        )  # fmt: skip
        spread = jnp.diag(variances) if self._is_full(frozen) else variances
        weights = jnp.full(self.num_components, 1 / self.num_components, means.dtype)
        statistics = Statistics(
            weights,
            _times(weights, means),
            _times(weights, _squares(means, self._is_full(frozen)) + spread[None]),
        )
        step = jnp.zeros((), jnp.int32)
        return MixtureState(step, statistics, self._components(statistics))

    def update(self, key, frozen, state, draws):
        """Takes one step of EM on a batch, in which nothing is random; see `Prior`."""
        del key
        points = frozen.flat(draws.eps)
        joint = state.params.log_weights[None] + log_normals(
            points, state.params.means, state.params.scales
        )
        shares = jax.nn.softmax(joint, axis=1) / len(points)
        squares = _squares(points, self._is_full(frozen))
        new = Statistics(
            shares.sum(axis=0),
            shares.T @ points,
            jnp.tensordot(shares.T, squares, axes=1),
        )
        t = (state.step + self.step_offset).astype(points.dtype)
        statistics = jax.tree.map(
            lambda old, new: old + t**-self.step_decay * (new - old),
            state.statistics,
            new,
        )
        loss = -jax.nn.logsumexp(joint, axis=1).mean()
        params = self._components(statistics)
        return MixtureState(state.step + 1, statistics, params), {"loss": loss}

    def sample(self, key, frozen, state, num, effort=1):
        """Draws exactly; see `Prior`."""
        del effort
        log_weights, means, scales = state.params
        # By one uniform number: a Gumbel for each component would take the most time.
        reached = jnp.cumsum(jax.nn.softmax(log_weights))

        def one(key):
            key_pick, key_noise = jax.random.split(key)
            u = reached[-1] * jax.random.uniform(key_pick, (), means.dtype)
            k = jnp.searchsorted(reached[:-1], u, side="right")
            noise = jax.random.normal(key_noise, means.shape[1:], means.dtype)
            full = scales.ndim == 3
            return means[k] + (scales[k] @ noise if full else scales[k] * noise)

        return frozen.layers(jax.vmap(one)(example_keys(key, jnp.arange(num))))

    def log_tilt(self, frozen, state, eps):
        """Computes log p(eps) - log N(eps)."""
        value = log_mixture(frozen.flat(eps), state.params)
        return value - log_standard_normal(eps)

    def trained(self, state):
        """Leaves out the statistics; see `Prior`."""
        return state.replace(statistics=())

    def num_parameters(self, state):
        """Counts the free ones: a factor is triangular, and weights sum to 1."""
        num, size = state.params.means.shape
        full = state.params.scales.ndim == 3
        return num - 1 + num * size + num * (size * (size + 1) // 2 if full else size)

    def _is_full(self, frozen):
        return frozen.size <= self.full_below

    def _components(self, statistics):
        """Computes weights, means and covariances from the statistics."""
        weights, sums, squares = statistics
        full = squares.ndim == 3
        # A component that sees nothing ends as N(0, I) of no weight, and not at 0 / 0.
        seen = jnp.maximum(weights, jnp.finfo(weights.dtype).tiny ** 0.5)
        means = _times(1 / seen, sums)
        centred = squares - _times(seen, _squares(means, full))
        unseen = self.shrinkage / self.num_components
        unit = jnp.ones_like(means[0])
        spread = unseen * (jnp.diag(unit) if full else unit)
        covariances = _times(1 / (seen + unseen), centred + spread[None])
        if full:
            scales = jnp.linalg.cholesky(covariances)
        else:
            scales = jnp.sqrt(jnp.maximum(covariances, unseen / (1 + unseen)))
        return Components(jnp.log(seen) - jnp.log(seen.sum()), means, scales)


def log_mixture(points: jax.Array, components: Components) -> jax.Array:
    """Computes the log-density of a mixture at points [N, D], in nats, [N]."""
    each = log_normals(points, components.means, components.scales)
    return jax.nn.logsumexp(components.log_weights[None] + each, axis=1)


def log_normals(points: jax.Array, means: jax.Array, scales: jax.Array) -> jax.Array:
    """Computes log-densities of points [N, D] under K Gaussians, in nats, [N, K].

    Args:
      points: [N, D].
      means: [K, D].
      scales: Cholesky factors [K, D, D], or standard deviations [K, D].

    Example:
      >>> log_normals(jnp.zeros((1, 1)), jnp.zeros((2, 1)), jnp.ones((2, 1))).shape
      (1, 2)
    """
    size = points.shape[1]
    full = scales.ndim == 3
    if full:
        eye = jnp.eye(size, dtype=scales.dtype)
        whiten = jax.vmap(
            lambda factor: jax.scipy.linalg.solve_triangular(factor, eye, lower=True)
        )(scales)
        deviations = jnp.diagonal(scales, axis1=1, axis2=2)
    else:
        whiten, deviations = 1 / scales, scales

    @jax.checkpoint  # else a gradient would keep [N, K, D]
    def one(component):
        mean, whiten = component
        away = points - mean[None]
        noise = away @ whiten.T if full else away * whiten[None]
        return -0.5 * (noise**2).sum(axis=1)

    at_once = max(1, _NUMBERS // points.size)
    squares = jax.lax.map(one, (means, whiten), batch_size=min(at_once, len(means)))
    constants = jnp.log(deviations).sum(axis=1) + 0.5 * size * math.log(2 * math.pi)
    return squares.T - constants[None]


# That `log_normals` holds at once, of N x K x D.
_NUMBERS = 2**22


def _times(weights, values):
    """Multiplies [K] by [K, ...]."""
    return weights.reshape(-1, *[1] * (values.ndim - 1)) * values


def _squares(points, full):
    """Returns outer products [N, D, D] of points [N, D] if `full`, or squares."""
    return points[:, :, None] * points[:, None, :] if full else points**2
