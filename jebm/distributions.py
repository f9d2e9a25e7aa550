"""The distribution of latents: independent normals.

    log N(z; m, s) = sum [ -((z - m) / s)^2 / 2 - log s - log(2 pi) / 2 ]

`log_prob` is normalised, in nats, and has shape [B]: every axis but the first is
summed.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


def sum_event(x: jax.Array) -> jax.Array:
    """Sums every axis but the first: [B, ...] to [B]."""
    return x.reshape(x.shape[0], -1).sum(-1)


class Normal(NamedTuple):
    """Independent normals, one per latent unit.

    The density uses exactly the `loc` and `scale` it is given: floors and clamps
    belong to the network that makes them.

    Example:
      >>> Normal(jnp.zeros((2, 3)), jnp.ones((2, 3))).log_prob(jnp.zeros((2, 3)))
      Array([-2.7568154, -2.7568154], dtype=float32)
    """

    loc: jax.Array  # [B, *shape]
    scale: jax.Array  # [B, *shape]

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Computes the log-density of `value` [B, *shape] in nats, [B]."""
        noise = (value - self.loc) / self.scale
        return sum_event(
            -0.5 * noise**2 - jnp.log(self.scale) - 0.5 * math.log(2 * math.pi)
        )

    def transport(self, noise: jax.Array) -> jax.Array:
        """Maps standard normal noise [B, *shape] to draws of these."""
        return self.loc + self.scale * noise
