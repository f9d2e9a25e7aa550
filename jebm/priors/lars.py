"""Learned accept/reject sampling: draws of N(0, I) that a network accepts.

    p(eps) = N(eps) [(1 - A) a(eps) / Z + A],   Z = E_N a,   A = (1 - Z)^(M - 1)

N(0, I) proposes and a(eps) is the probability to accept; A is that of reaching the M-th
proposal, which is taken as it is. No density is above 1 / Z times that of N(0, I), and
where log Z is far below -log M little can be learned. (arXiv 1810.11428)
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jebm.chains import example_keys
from jebm.importance import estimate
from jebm.networks import Logit
from jebm.priors.base import ESTIMATED, Gradient


class Rates(NamedTuple):
    """Running averages of Z, the share of N(0, I) that is accepted; each []."""

    learned: jax.Array  # at the parameters that learn
    averaged: jax.Array  # at the averaged ones


@dataclasses.dataclass(frozen=True)
class LARS(Gradient):
    """N(0, I) with rejection.

    The density is normalised up to the estimate of Z that the state keeps: `log_tilt`
    includes it, and `log_z` is what its error leaves, near 0.

    Attributes:
      widths, activation: of the network of a.
      max_tries: M.
      num_proposals: draws of N(0, I) that an update estimates Z with.
      rate_decay: of the running average of Z, whose gradient is the batch's.
      num_particles: of `log_z`.

    Example:
      >>> import jebm
      >>> frozen = jebm.priors.freeze(*jebm.load_pretrained("digits"))
      >>> eps = frozen.noise(jax.random.key(0), 8)
      >>> prior = LARS(widths=(16,))
      >>> state = prior.init(jax.random.key(1), frozen, jebm.priors.Draws(eps))
      >>> prior.log_tilt(frozen, state, eps).round(3)[0]  # a = Z: N(0, I) itself
      Array(0., dtype=float32)
    """

    density: ClassVar[str | None] = ESTIMATED
    cannot: ClassVar[str] = "raise a density by more than 1 / Z, of M tries a draw"

    widths: tuple[int, ...] = (256, 256)
    activation: str = "silu"
    max_tries: int = 100
    num_proposals: int = 1024
    rate_decay: float = 0.99
    num_particles: int = 100_000

    def start(self, key, frozen, draws):
        """Initialises a network that accepts half of all proposals; see `Gradient`."""
        del draws
        # Networks make float32, so that a seed means one start in any precision.
        params = self._network().init(key, jnp.zeros((1, frozen.size), jnp.float32))
        params = jax.tree.map(lambda leaf: leaf.astype(frozen.dtype), params)
        half = jnp.full((), 0.5, frozen.dtype)
        return params, Rates(half, half)

    def loss(self, key, frozen, state, params, draws):
        """Computes -log p, a mean over the batch, without the entropy of N(0, I)."""
        proposals = frozen.flat(frozen.noise(key, self.num_proposals))
        rate = self._rate(params, proposals)
        # The first batches should not stand beside a Z from before them.
        step = (state.step + 1).astype(frozen.dtype)
        decay = jnp.minimum(self.rate_decay, step / (9 + step))
        kept = jax.lax.stop_gradient(decay * state.memory.learned + (1 - decay) * rate)
        # The average's value, with the batch's gradient.
        z = rate + jax.lax.stop_gradient(kept - rate)
        value = -self._tilt(params, z, frozen.flat(draws.eps)).mean()
        memory = state.memory._replace(learned=kept)
        return value, (memory, {"loss": value, "log_rate": jnp.log(kept)})

    def update(self, key, frozen, state, draws):
        """Takes one step, and updates Z of the averaged parameters; see `Prior`."""
        new, info = super().update(key, frozen, state, draws)
        # Both on the same proposals: so the average follows the parameters at once, and
        # does not lag behind them by its memory.
        key = jax.random.fold_in(jax.random.split(key)[1], state.step)
        proposals = frozen.flat(frozen.noise(key, self.num_proposals))
        before = self._rate(state.ema, proposals)
        after = self._rate(new.ema, proposals)
        moved = state.memory.averaged * after / before
        averaged = self.rate_decay * moved + (1 - self.rate_decay) * after
        return new.replace(memory=new.memory._replace(averaged=averaged)), info

    def sample(self, key, frozen, state, num, effort=1):
        """Draws exactly, in M tries at most; see `Prior`."""
        del effort
        keys = example_keys(key, jnp.arange(num))

        def propose(t):
            def one(key):
                key_eps, key_accept = jax.random.split(jax.random.fold_in(key, t))
                eps = jax.random.normal(key_eps, (frozen.size,), frozen.dtype)
                return eps, jax.random.logistic(key_accept, (), frozen.dtype)

            return jax.vmap(one)(keys)

        def goes_on(carry):
            t, _, accepted = carry
            return (t < self.max_tries - 1) & ~accepted.all()

        def attempt(carry):
            t, kept, accepted = carry
            eps, noise = propose(t)
            # A logistic draw lies below the logit with the probability a.
            accepts = noise < self._network().apply(state.ema, eps)
            new = accepts & ~accepted
            return t + 1, jnp.where(new[:, None], eps, kept), accepted | accepts

        last, _ = propose(jnp.int32(self.max_tries - 1))
        carry = (jnp.int32(0), last, jnp.zeros(num, bool))
        return frozen.layers(jax.lax.while_loop(goes_on, attempt, carry)[1])

    def log_tilt(self, frozen, state, eps):
        """Computes log p(eps) - log N(eps), by the state's estimate of Z."""
        return self._tilt(state.ema, state.memory.averaged, frozen.flat(eps))

    def log_z(self, key, frozen, state):
        """Estimates what an error of Z leaves, by new draws of N(0, I)."""
        proposals = frozen.flat(frozen.noise(key, self.num_particles))
        return estimate(self._tilt(state.ema, state.memory.averaged, proposals))

    def _network(self):
        return Logit(self.widths, self.activation)

    def _rate(self, params, proposals):
        """Computes the mean of a over proposals, []."""
        return jax.nn.sigmoid(self._network().apply(params, proposals)).mean()

    def _tilt(self, params, z, eps):
        """Computes log[(1 - A) a / Z + A] of eps [N, D]."""
        tiny = jnp.finfo(z.dtype).eps
        z = jnp.clip(z, tiny, 1 - tiny)
        log_a = jax.nn.log_sigmoid(self._network().apply(params, eps))
        log_last = (self.max_tries - 1) * jnp.log1p(-z)
        if self.max_tries == 1:  # all are accepted
            return jnp.zeros_like(log_a)
        accepted = jnp.log(-jnp.expm1(log_last)) + log_a - jnp.log(z)
        return jnp.logaddexp(accepted, log_last)
