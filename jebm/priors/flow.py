"""A continuous flow, learned by flow matching.

    eps_t = (1 - t) n + t eps,    loss = |v(eps_t, t) - (eps - n)|^2,    n ~ N(0, I)

The noise n flows to eps along d eps_t / dt = v(eps_t, t), from t = 0 to 1; backwards
the log-density moves by the trace of dv/d eps: exact for few units, beyond by
Hutchinson's estimate. (arXiv 2210.02747; the trace: arXiv 1810.01367)
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jebm.distributions import Normal
from jebm.hierarchy import log_standard_normal
from jebm.priors.base import Gradient


class Velocity(nn.Module):
    """v(eps_t, t): residual layers that see t at a few frequencies.

    Zero at initialisation: the flow starts as the identity.
    """

    width: int
    depth: int

    @nn.compact
    def __call__(self, eps: jax.Array, t: jax.Array) -> jax.Array:
        """Maps [N, D] and [N] to [N, D]."""
        angles = jnp.outer(t, 2.0 ** jnp.arange(5, dtype=t.dtype))
        time = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
        time = nn.silu(nn.Dense(self.width)(time))
        h = nn.Dense(self.width)(eps)
        for _ in range(self.depth):
            # Else it would compute in float32, whatever eps is.
            norm = nn.LayerNorm(param_dtype=h.dtype, force_float32_reductions=False)
            inner = nn.silu(norm(h) + nn.Dense(self.width)(time))
            h = h + nn.Dense(self.width)(nn.silu(nn.Dense(self.width)(inner)))
        zeros = nn.initializers.zeros
        return nn.Dense(eps.shape[-1], kernel_init=zeros)(nn.silu(h))


@dataclasses.dataclass(frozen=True)
class Flow(Gradient):
    """Flow matching on eps.

    Attributes:
      width, depth: of the residual network of v.
      num_integration_steps: of Heun's rule, two evaluations of v each.
      exact_below: up to so many units of eps the trace is exact; beyond, one probe
        of Hutchinson's, the same for all, estimates it.

    Example:
      >>> import jebm
      >>> frozen = jebm.priors.freeze(*jebm.load_pretrained("digits"))
      >>> eps = frozen.noise(jax.random.key(0), 8)
      >>> prior = Flow(width=16, depth=1)
      >>> state = prior.init(jax.random.key(1), frozen, jebm.priors.Draws(eps))
      >>> prior.log_tilt(frozen, state, eps).round(3)[0]  # v = 0: N(0, I) itself
      Array(0., dtype=float32)
    """

    cannot = "score at once: the density is an integral"

    learning_rate: float = 3e-3
    width: int = 256
    depth: int = 3
    num_integration_steps: int = 10
    exact_below: int = 64

    def start(self, key, frozen, draws):
        """Initialises the network of the velocity; see `Gradient`."""
        del draws
        eps = jnp.zeros((1, frozen.size), jnp.float32)
        params = self._network().init(key, eps, eps[:, 0])
        return jax.tree.map(lambda leaf: leaf.astype(frozen.dtype), params), ()

    def loss(self, key, frozen, state, params, draws):
        """Computes the squared error of the velocity, a mean over units."""
        del state
        end = frozen.flat(draws.eps)
        key_noise, key_time = jax.random.split(key)
        n = jax.random.normal(key_noise, end.shape, end.dtype)
        t = jax.random.uniform(key_time, (len(end),), end.dtype)
        between = (1 - t[:, None]) * n + t[:, None] * end
        error = self._network().apply(params, between, t) - (end - n)
        value = (error**2).mean()
        return value, ((), {"loss": value})

    def sample(self, key, frozen, state, num, effort=1):
        """Flows draws of N(0, I) from t = 0 to 1."""
        start = frozen.flat(frozen.noise(key, num))
        steps = self.num_integration_steps * effort
        return frozen.layers(_heun(self._field(state), start, 0.0, 1.0, steps))

    def log_tilt(self, frozen, state, eps):
        """Computes log p(eps) - log N(eps), by the flow backwards from t = 1 to 0."""
        end = frozen.flat(eps)
        velocity = self._field(state)
        exact = frozen.size <= self.exact_below
        probe = jax.random.rademacher(jax.random.key(0), end.shape[1:], end.dtype)

        def one(eps, t):  # [D], []: v and the trace of its derivative
            v = functools.partial(self._one, velocity, t)
            if exact:
                value, jvp = jax.linearize(v, eps)
                basis = jnp.eye(len(eps), dtype=eps.dtype)
                return value, jnp.trace(jax.vmap(jvp)(basis))
            value, moved = jax.jvp(v, (eps,), (probe,))
            return value, probe @ moved

        def field(state, t):
            return jax.vmap(one)(state[0], t)

        start, change = _heun(
            field, (end, jnp.zeros_like(end[:, 0])), 1.0, 0.0,
            self.num_integration_steps,
        )  # fmt: skip
        normal = Normal(jnp.zeros_like(start), jnp.ones_like(start))
        return normal.log_prob(start) + change - log_standard_normal(eps)

    def _network(self):
        return Velocity(self.width, self.depth)

    def _field(self, state):
        return functools.partial(self._network().apply, state.ema)

    @staticmethod
    def _one(velocity, t, eps):
        return velocity(eps[None], t[None])[0]


def _heun(field, start, first, last, num_steps):
    """Integrates d state / dt = field(state, t [N]) by Heun's rule."""
    num = len(jax.tree.leaves(start)[0])
    dtype = jax.tree.leaves(start)[0].dtype
    h = (last - first) / num_steps

    def moved(state, slope, share):
        return jax.tree.map(lambda s, v: s + share * h * v, state, slope)

    def step(state, i):
        t = jnp.full(num, first, dtype) + h * i.astype(dtype)
        here = field(state, t)
        there = field(moved(state, here, 1.0), t + h)
        slope = jax.tree.map(lambda a, b: (a + b) / 2, here, there)
        return moved(state, slope, 1.0), None

    return jax.lax.scan(step, start, jnp.arange(num_steps))[0]
