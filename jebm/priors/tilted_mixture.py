"""A mixture of Gaussians, tilted by what a classifier tells it from Q by.

    p(eps) = p_mixture(eps) r(eps) / Z,     r = D / (1 - D),     Z = E_mixture r

The mixture learns by online EM. D tells Q, the noise behind posterior samples, from
draws of the mixture as it stands, by the logistic loss. The mixture is near Q, so r is
near 1: a few proposals make an independent draw, and few draws make a sharp Z.
(noise contrast with a learned law: arXiv 1912.00589, there a flow)
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jebm.chains import example_keys
from jebm.partition import estimate
from jebm.priors.base import UNNORMALISED, Gradient
from jebm.priors.mixture import Mixture
from jebm.priors.noise_contrast import Logit


@dataclasses.dataclass(frozen=True)
class TiltedMixture(Gradient):
    """A mixture corrected by a classifier, drawn by resampling.

    Attributes:
      mixture: what proposes.
      widths, activation: of the classifier, an MLP.
      num_proposals: of a draw, one of which is chosen with probability proportional to
        r; effort multiplies them.
      num_weights: draws of the mixture that `log_z` averages.

    Example:
      >>> import jebm
      >>> frozen = jebm.priors.freeze(*jebm.load_pretrained("digits"))
      >>> draws = jebm.priors.Draws(frozen.noise(jax.random.key(0), 8))
      >>> prior = TiltedMixture(Mixture(num_components=4), widths=(16,))
      >>> state = prior.init(jax.random.key(1), frozen, draws)
      >>> state, info = prior.update(jax.random.key(2), frozen, state, draws)
      >>> prior.sample(jax.random.key(3), frozen, state, 5)[0].shape
      (5, 10)
    """

    density: ClassVar[str | None] = UNNORMALISED
    cannot: ClassVar[str] = "reach what its mixture does not propose"

    mixture: Mixture = Mixture(num_components=200)
    widths: tuple[int, ...] = (256, 256)
    activation: str = "silu"
    num_proposals: int = 20
    num_weights: int = 20_000

    def start(self, key, frozen, draws):
        """Initialises a classifier that tells nothing yet; see `Gradient`."""
        key_network, key_mixture = jax.random.split(key)
        eps = jnp.zeros((1, frozen.size), jnp.float32)
        params = self._network().init(key_network, eps)
        params = jax.tree.map(lambda leaf: leaf.astype(frozen.dtype), params)
        return params, self.mixture.init(key_mixture, frozen, draws)

    def loss(self, key, frozen, state, params, draws):
        """Computes the logistic loss, and takes the mixture's step of EM."""
        mixture, of_mixture = self.mixture.update(key, frozen, state.memory, draws)
        negative = self.mixture.sample(key, frozen, state.memory, len(draws.eps[0]))
        plus = self._log_ratio(params, frozen, draws.eps)
        minus = self._log_ratio(params, frozen, negative)
        value = jax.nn.softplus(-plus).mean() + jax.nn.softplus(minus).mean()
        right = jnp.concatenate([plus > 0, minus < 0]).mean(dtype=value.dtype)
        info = {"loss": value, "accuracy": right, "mixture_loss": of_mixture["loss"]}
        return value, (mixture, info)

    def sample(self, key, frozen, state, num, effort=1):
        """Draws by resampling proposals of the mixture; see `Prior`."""

        def propose(t):
            key_eps, key_choice = jax.random.split(jax.random.fold_in(key, t))
            eps = self.mixture.sample(key_eps, frozen, state.memory, num)
            choices = example_keys(key_choice, jnp.arange(num))
            gumbel = jax.vmap(lambda k: jax.random.gumbel(k, (), frozen.dtype))(choices)
            return eps, self._log_ratio(state.ema, frozen, eps) + gumbel

        # By Gumbel's rule the largest log r + Gumbel is the choice.
        def improve(best, t):
            new = propose(t)
            better = new[1] > best[1]

            def chosen(new, old):
                return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

            return jax.tree.map(chosen, new, best), None

        times = jnp.arange(1, self.num_proposals * effort)
        return jax.lax.scan(improve, propose(0), times)[0][0]

    def log_tilt(self, frozen, state, eps):
        """Computes log p_mixture(eps) + log r(eps) - log N(eps), [N] in nats."""
        return self.mixture.log_tilt(frozen, state.memory, eps) + self._log_ratio(
            state.ema, frozen, eps
        )

    def log_z(self, key, frozen, state):
        """Estimates log Z by the mean of r over draws of the mixture."""
        eps = self.mixture.sample(key, frozen, state.memory, self.num_weights)
        return estimate(self._log_ratio(state.ema, frozen, eps))

    def trained(self, state):
        """Leaves out the mixture's statistics too; see `Gradient`."""
        memory = self.mixture.trained(state.memory)
        return super().trained(state).replace(memory=memory)

    def num_parameters(self, state):
        """Counts the parameters of both."""
        own = sum(leaf.size for leaf in jax.tree.leaves(state.ema))
        return own + self.mixture.num_parameters(state.memory)

    def _log_ratio(self, params, frozen, eps):
        return self._network().apply(params, frozen.flat(eps))

    def _network(self):
        return Logit(self.widths, self.activation)
