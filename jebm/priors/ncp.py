"""A noise-contrastive prior: one classifier a layer, learned all at once.

    p(eps) = prod_k N(eps_k) r_k(eps_k, eps_{>k}) / Z_k(eps_{>k})
    r_k = D_k / (1 - D_k),     Z_k = E_N r_k

D_k tells eps_k of Q from eps_k of N(0, I), both below eps_{>k} of Q, by the logistic
loss. As eps_{>k} determines z_{>k}, the ratio is that of the conditional laws of z_k.
(arXiv 2010.02917)
"""

import dataclasses
import math
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jebm.chains import example_keys
from jebm.hierarchy import log_standard_normal
from jebm.importance import estimate
from jebm.names import unknown_name_message
from jebm.networks import ACTIVATIONS
from jebm.priors import walks
from jebm.priors.base import ESTIMATED, Gradient

DRAWN_BY = ("resampling", "langevin")


class Classifier(nn.Module):
    """The logit of D_k, which is log r_k; 0 at initialisation.

    What lies above is read apart from eps_k, so that many eps_k may share it.
    """

    widths: tuple[int, ...]
    activation: str

    @nn.compact
    def __call__(self, own: jax.Array, above: jax.Array) -> jax.Array:
        """Maps [..., D_k] and [..., D_{>k}], which broadcast, to [...]."""
        activation = ACTIVATIONS[self.activation]
        first, *others = self.widths
        h = nn.Dense(first)(own)
        if above.shape[-1]:
            seen = nn.Dense(first, use_bias=False)(above)
            shape = jnp.broadcast_shapes(h.shape, seen.shape)
            h = jnp.broadcast_to(h, shape) + jnp.broadcast_to(seen, shape)
        h = activation(h)
        for width in others:
            h = activation(nn.Dense(width)(h))
        return nn.Dense(1, kernel_init=nn.initializers.zeros)(h)[..., 0]


@dataclasses.dataclass(frozen=True)
class NCP(Gradient):
    """Classifiers of each layer's noise, given the layers above.

    The density is normalised up to the estimate of Z_k(eps_{>k}): `log_tilt` includes
    it, a mean over proposals that are always the same, and `log_z` is what its error
    leaves. Draws by resampling near the density's own law as proposals grow. A Langevin
    chain moves all layers by the product of the r_k without the Z_k, as published: with
    more than one layer that is another law, unless the Z_k are constant.

    Attributes:
      widths, activation: of each classifier.
      by: how to draw, "resampling" or "langevin".
      num_proposals: a layer, of which one is kept with probability proportional to r_k;
        effort multiplies them.
      chain_steps, step_size: of a Langevin draw; effort multiplies the steps.
      num_normaliser: proposals of the estimate of each Z_k.
      num_particles: of `log_z`.

    Example:
      >>> import jebm
      >>> frozen = jebm.priors.freeze(*jebm.load_pretrained("digits"))
      >>> eps = frozen.noise(jax.random.key(0), 8)
      >>> prior = NCP(widths=(16,))
      >>> state = prior.init(jax.random.key(1), frozen, jebm.priors.Draws(eps))
      >>> prior.log_tilt(frozen, state, eps).round(3)[0]  # D = 1/2: N(0, I) itself
      Array(0., dtype=float32)
    """

    density: ClassVar[str | None] = ESTIMATED
    cannot: ClassVar[str] = "tell apart laws that its proposals hardly reach"

    widths: tuple[int, ...] = (256, 256)
    activation: str = "silu"
    by: str = "resampling"
    num_proposals: int = 500
    chain_steps: int = 200
    step_size: float = 0.3
    num_normaliser: int = 256
    num_particles: int = 1000

    def __post_init__(self):
        if self.by not in DRAWN_BY:
            raise ValueError(unknown_name_message("by", self.by, DRAWN_BY))

    def start(self, key, frozen, draws):
        """Initialises the classifiers, which tell nothing yet; see `Gradient`."""
        del draws
        # Networks make float32, so that a seed means one start in any precision.
        eps = tuple(jnp.zeros((1, *shape), jnp.float32) for shape in frozen.shapes)
        layers = tuple(
            self._network().init(jax.random.fold_in(key, k), *self._parts(eps, k))
            for k in range(len(eps))
        )
        return jax.tree.map(lambda leaf: leaf.astype(frozen.dtype), layers), ()

    def loss(self, key, frozen, state, params, draws):
        """Computes the logistic loss, a mean over the batch, summed over layers."""
        del state
        eps = draws.eps
        noise = frozen.noise(key, len(eps[0]))
        value, right = jnp.zeros((), frozen.dtype), []
        for k in range(len(eps)):
            own, above = self._parts(eps, k)
            other, _ = self._parts(noise, k)
            of_q = self.log_ratio(params, k, own, above)
            of_noise = self.log_ratio(params, k, other, above)
            value += jax.nn.softplus(-of_q).mean() + jax.nn.softplus(of_noise).mean()
            right += [of_q > 0, of_noise < 0]
        accuracy = jnp.concatenate(right).mean(dtype=value.dtype)
        return value, ((), {"loss": value, "accuracy": accuracy})

    def sample(self, key, frozen, state, num, effort=1):
        """Draws top down by resampling, or by a tested chain from N(0, I)."""
        if self.by == "resampling":
            return self._resample(key, frozen, state, num, effort)[0]

        def logdensity(eps):
            eps = jax.tree.map(lambda e: e[None], eps)
            ratios = (
                self.log_ratio(state.ema, k, *self._parts(eps, k))
                for k in range(len(eps))
            )
            return (log_standard_normal(eps) + sum(ratios))[0]

        key_start, key_chain = jax.random.split(key)
        keys = example_keys(key_chain, jnp.arange(num))
        start = frozen.noise(key_start, num)
        steps = self.chain_steps * effort
        return walks.run(keys, start, logdensity, steps, self.step_size)[0]

    def log_tilt(self, frozen, state, eps):
        """Sums log r_k - log Z_k(eps_{>k}) over layers, by estimates of Z_k."""
        value = jnp.zeros_like(eps[0], shape=len(eps[0]))
        for k in range(len(eps)):
            own, above = self._parts(eps, k)
            value += self.log_ratio(state.ema, k, own, above)
            value -= self._log_normaliser(frozen, state, k, above)
        return value

    def log_z(self, key, frozen, state):
        """Estimates what errors of the Z_k leave: see `_resample`."""
        return estimate(self._resample(key, frozen, state, self.num_particles, 1)[1])

    def log_ratio(self, params, k: int, own: jax.Array, above: jax.Array) -> jax.Array:
        """Computes log r_k of flat eps_k [..., D_k] and eps_{>k} [..., D_{>k}]."""
        return self._network().apply(params[k], own, above)

    def _network(self):
        return Classifier(self.widths, self.activation)

    def _parts(self, eps, k):
        """Returns eps_k and eps_{>k}, flat, [N, D_k] and [N, D_{>k}]."""
        own, *above = (e.reshape(len(e), -1) for e in eps[k:])
        none = jnp.zeros_like(own[:, :0])
        return own, jnp.concatenate([none, *above], axis=1)

    def _log_normaliser(self, frozen, state, k, above):
        """Estimates log Z_k [N], by the mean of r_k over fixed proposals."""
        num, size = self.num_normaliser, math.prod(frozen.shapes[k])
        at_once = self._at_once(len(above), size, num)
        key = jax.random.fold_in(jax.random.key(0), k)

        def add(total, first):
            index = first + jnp.arange(at_once)
            own = jax.vmap(
                lambda key: jax.random.normal(key, (size,), frozen.dtype)
            )(example_keys(key, index))  # fmt: skip
            logits = self.log_ratio(state.ema, k, own[None], above[:, None])
            logits = jnp.where((index < num)[None], logits, -jnp.inf)
            return jnp.logaddexp(total, jax.nn.logsumexp(logits, axis=1)), None

        nothing = jnp.full(len(above), -jnp.inf, frozen.dtype)
        total, _ = jax.lax.scan(add, nothing, jnp.arange(0, num, at_once))
        return total - math.log(num)

    def _resample(self, key, frozen, state, num, effort):
        """Draws by resampling, and log-weights [num] whose mean estimates exp(log Z).

        The weight of a draw is the product over layers of the mean of r_k over its
        proposals, over the Z_k of `log_tilt`; its expectation is the normaliser of
        `log_tilt` exactly, for any number of proposals.
        """
        keys = example_keys(key, jnp.arange(num))
        tries = self.num_proposals * effort
        eps = ()
        log_weights = jnp.zeros(num, frozen.dtype)
        for k in reversed(range(len(frozen.shapes))):
            above = jnp.concatenate(
                [jnp.zeros((num, 0), frozen.dtype), *(e.reshape(num, -1) for e in eps)],
                axis=1,
            )
            layer = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, k)
            own, total = self._choose(layer, frozen, state, k, above, tries)
            log_weights += total - math.log(tries)
            log_weights -= self._log_normaliser(frozen, state, k, above)
            eps = (own.reshape(num, *frozen.shapes[k]), *eps)
        return eps, log_weights

    def _choose(self, keys, frozen, state, k, above, tries):
        """Chooses one of `tries` proposals by r_k, [N, D_k]; returns log sum r_k, [N].

        By Gumbel's rule the choice is the proposal of the largest log r_k + Gumbel, so
        that few are held at a time.
        """
        num, size = len(keys), math.prod(frozen.shapes[k])
        at_once = self._at_once(num, size, tries)

        def propose(key):
            key_eps, key_choice = jax.random.split(key)
            eps = jax.random.normal(key_eps, (size,), frozen.dtype)
            return eps, jax.random.gumbel(key_choice, (), frozen.dtype)

        def improve(carry, first):
            best, score, total = carry
            index = first + jnp.arange(at_once)
            each = jax.vmap(example_keys, in_axes=(0, None))(keys, index)
            own, gumbel = jax.vmap(jax.vmap(propose))(each)
            logits = self.log_ratio(state.ema, k, own, above[:, None])
            logits = jnp.where((index < tries)[None], logits, -jnp.inf)
            scores = logits + gumbel
            winner = scores.argmax(axis=1)[:, None]
            new_score = jnp.take_along_axis(scores, winner, axis=1)[:, 0]
            new = jnp.take_along_axis(own, winner[:, :, None], axis=1)[:, 0]
            best = jnp.where((new_score > score)[:, None], new, best)
            total = jnp.logaddexp(total, jax.nn.logsumexp(logits, axis=1))
            return (best, jnp.maximum(score, new_score), total), None

        nothing = jnp.full(num, -jnp.inf, frozen.dtype)
        start = (jnp.zeros((num, size), frozen.dtype), nothing, nothing)
        (best, _, total), _ = jax.lax.scan(
            improve, start, jnp.arange(0, tries, at_once)
        )
        return best, total

    def _at_once(self, num, size, tries):
        """Computes how many proposals of each of `num` examples are held at a time."""
        return max(1, min(tries, _NUMBERS // (num * max(size, *self.widths))))


# That proposals, or what a layer of a classifier makes of them, may be.
_NUMBERS = 2**22
