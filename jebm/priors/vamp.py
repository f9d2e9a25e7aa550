"""A mixture of posteriors: the encoder's q of learned images as the top layer's law.

    p(z_L) = 1/K sum_k q(z_L | u_k),     z_i ~ p_beta(z_i | z_{>i}) below

The pseudo-inputs u_k are learned by the gradient of log p through the frozen encoder.
(arXiv 1705.07120; there the encoder is learned too)
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jebm.chains import example_keys
from jebm.distributions import Normal
from jebm.hierarchy import (
    has_normal_posterior,
    log_standard_normal,
    normal_posterior,
)
from jebm.priors.base import Gradient
from jebm.priors.mixture import Components, log_mixture


@dataclasses.dataclass(frozen=True)
class VampPrior(Gradient):
    """The top layer as a mixture of the encoder's posteriors.

    Its q must be normal given the layers above, as it is in `jebm.backbones` without
    flows. Parameters are the logits of the pseudo-inputs, [K, H, W, C].

    Attributes:
      num_components: K.
      learning_rate: of the logits of the pseudo-inputs.

    Example:
      >>> import jebm
      >>> frozen = jebm.priors.freeze(*jebm.load_pretrained("digits"))
      >>> x = jax.random.uniform(jax.random.key(0), (8, 8, 8, 1))
      >>> draws = frozen.draws(jax.random.key(1), x)
      >>> prior = VampPrior(num_components=4)
      >>> state = prior.init(jax.random.key(2), frozen, draws)
      >>> prior.log_tilt(frozen, state, draws.eps).shape
      (8,)
    """

    cannot: ClassVar[str] = "mend the layers below the top"

    num_components: int = 500
    learning_rate: float = 3e-2

    def lacks(self, frozen):
        """Demands an encoder whose q is normal: says what is missing; see `Prior`."""
        if has_normal_posterior(frozen.model.backbone):
            return ""
        return "the backbone has no encoder whose q is normal"

    def start(self, key, frozen, draws):
        """Starts pseudo-inputs at images of the draws, decoded where not given."""
        images = frozen.decode(draws.eps) if draws.x is None else draws.x
        images = jnp.asarray(images, frozen.dtype)
        key_pick, key_move = jax.random.split(key)
        order = jax.random.permutation(key_pick, len(images))
        images = images[order[jnp.arange(self.num_components) % len(images)]]
        # A logit far out has no gradient; and two that are equal would stay so.
        logits = jax.scipy.special.logit(jnp.clip(images, 0.02, 0.98))
        moves = jax.random.normal(key_move, logits.shape, logits.dtype)
        return logits + 0.1 * moves, ()

    def loss(self, key, frozen, state, params, draws):
        """Computes -log p of the top layer, a mean over the batch."""
        del key, state
        value = -self._log_top(frozen, params, draws.eps[-1]).mean()
        return value, ((), {"loss": value})

    def sample(self, key, frozen, state, num, effort=1):
        """Draws exactly; see `Prior`."""
        del effort
        key_noise, key_pick = jax.random.split(key)
        *below, noise = frozen.noise(key_noise, num)
        keys = example_keys(key_pick, jnp.arange(num))
        pick = lambda key: jax.random.randint(key, (), 0, self.num_components)  # noqa: E731
        k = jax.vmap(pick)(keys)
        loc, scale = self.components(frozen, state.ema)
        return (*below, loc[k] + scale[k] * noise)

    def log_tilt(self, frozen, state, eps):
        """Computes log p(eps_L) - log N(eps_L)."""
        top = eps[-1]
        return self._log_top(frozen, state.ema, top) - log_standard_normal((top,))

    def components(self, frozen, logits: jax.Array) -> Normal:
        """Computes q of each pseudo-input, as normals of eps_L: [K, *shape_L]."""
        images = jax.nn.sigmoid(logits)
        top = len(frozen.shapes) - 1

        def q(backbone):
            features = backbone.encode(images)
            state = backbone.start(len(images))
            prior = backbone.prior(top, state)
            loc, scale = normal_posterior(backbone, top, state, features, prior)
            return Normal((loc - prior.loc) / prior.scale, scale / prior.scale)

        return nn.apply(q, frozen.model.backbone)(frozen.params.backbone)

    def _log_top(self, frozen, logits, top):
        """Computes log p of eps_L, [N]."""
        loc, scale = (x.reshape(len(x), -1) for x in self.components(frozen, logits))
        equal = -jnp.log(jnp.full_like(loc[:, 0], len(loc)))
        return log_mixture(top.reshape(len(top), -1), Components(equal, loc, scale))
