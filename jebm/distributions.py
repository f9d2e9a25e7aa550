"""Distributions of latents and of images.

    log N(z; m, s) = sum [ -((z - m) / s)^2 / 2 - log s - log(2 pi) / 2 ]

`log_prob` is normalised, in nats, and has shape [B]: every axis but the first is
summed. Each likelihood owns the map from the decoder's unconstrained output to the
image scale [0, 1], so that a backbone need not know which one it feeds.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


def _sum_event(x: jax.Array) -> jax.Array:
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
        """Log-density of `value` [B, *shape], in nats. Returns [B]."""
        noise = (value - self.loc) / self.scale
        return _sum_event(
            -0.5 * noise**2 - jnp.log(self.scale) - 0.5 * math.log(2 * math.pi)
        )

    def sample(self, keys: jax.Array) -> jax.Array:
        """Draws [B, *shape], each example from its typed key; differentiable."""
        loc, scale = jnp.broadcast_arrays(self.loc, self.scale)
        noise = jax.vmap(lambda k: jax.random.normal(k, loc.shape[1:], loc.dtype))(keys)
        return loc + scale * noise


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """p(x | z) = N(x; sigmoid(output), scale), a density of x on the scale [0, 1].

    The paper's sigma_x = 0.3 on [-1, 1] is `scale = 0.15` here.

    Example:
      >>> Gaussian(scale=0.15).mean(jnp.zeros((1, 1, 1, 1))).item()
      0.5
    """

    scale: float = 0.15
    outputs_per_channel = 1

    def __post_init__(self):
        if not self.scale > 0:
            raise ValueError(f"likelihood scale must be positive, got {self.scale}")

    def mean(self, output: jax.Array) -> jax.Array:
        """Expected image in [0, 1], from decoder output [B, H, W, C]."""
        return jax.nn.sigmoid(output)

    def log_prob(self, output: jax.Array, x: jax.Array) -> jax.Array:
        """log p(x | z) in nats, [B]; `output` and `x` are [B, H, W, C]."""
        loc = self.mean(output)
        return Normal(loc, jnp.full_like(loc, self.scale)).log_prob(x)


@dataclasses.dataclass(frozen=True)
class Bernoulli:
    """p(x = 1 | z) = sigmoid(output), for binary x.

    For grey x in [0, 1] the same formula is the usual cross-entropy, which is not a
    normalised density.

    Example:
      >>> x = jnp.ones((1, 1, 1, 1))
      >>> Bernoulli().log_prob(jnp.zeros_like(x), x)
      Array([-0.6931472], dtype=float32)
    """

    outputs_per_channel = 1

    def mean(self, output: jax.Array) -> jax.Array:
        """Expected image in [0, 1], from logits [B, H, W, C]."""
        return jax.nn.sigmoid(output)

    def log_prob(self, output: jax.Array, x: jax.Array) -> jax.Array:
        """log p(x | z) in nats, [B]; `output` (logits) and `x` are [B, H, W, C]."""
        return _sum_event(
            x * jax.nn.log_sigmoid(output) + (1 - x) * jax.nn.log_sigmoid(-output)
        )
