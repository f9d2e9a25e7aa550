"""Energies of the latents.

    layerwise   E(z) = - sum_i f_i(z_i)        (arXiv 2306.06323)
    joint       E(z) = - f(z_1, ..., z_L)      (arXiv 2310.09604)

An energy is any Linen module that maps latents (a tuple, bottom to top, each
[B, *shape_i]) to [B], in nats; low energy is likely.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jebm.hierarchy import Latents
from jebm.networks import MLP, check_activation


class LayerwiseEnergy(nn.Module):
    """One MLP f_i per layer, zero at initialisation: training starts at p_beta.

    Attributes:
      widths: hidden widths of f_i, either the same for every layer, (200, 200), or one
        tuple per layer, bottom to top, ((200, 200, 200), (100, 100)).
      activation: a smooth one by default, because the Langevin chain must follow f.

    Example:
      >>> energy, latents = LayerwiseEnergy(), (jnp.ones((5, 3)), jnp.ones((5, 2)))
      >>> params = energy.init(jax.random.key(0), latents)
      >>> energy.apply(params, latents).shape
      (5,)
    """

    widths: tuple = (200, 200)
    activation: str = "gelu"

    def __post_init__(self):
        check_activation(self.activation)
        if not isinstance(self.widths, tuple):
            raise ValueError(f"energy widths must be a tuple, got {self.widths!r}")
        super().__post_init__()

    @nn.compact
    def per_layer(self, latents: Latents) -> tuple[jax.Array, ...]:
        """Returns E_i(z_i) = -f_i(z_i), a tuple of [B], bottom to top."""
        per_layer = self.widths
        if not any(isinstance(w, tuple) for w in per_layer):
            per_layer = (self.widths,) * len(latents)
        if len(per_layer) != len(latents):
            raise ValueError(
                f"energy widths must have one tuple per layer: got {len(per_layer)} "
                f"for {len(latents)} layers"
            )
        networks = [
            MLP(widths, 1, self.activation, energy_head=True, name=f"f{i + 1}")
            for i, widths in enumerate(per_layer)
        ]
        return tuple(-f(z)[:, 0] for f, z in zip(networks, latents, strict=True))

    def __call__(self, latents: Latents) -> jax.Array:
        """Returns E(z), [B]."""
        return sum(self.per_layer(latents))


class JointEnergy(nn.Module):
    """One MLP of all layers, zero at initialisation.

    It sees which values of the layers go together, as a sum of one energy per layer
    cannot. That matters where the decoder reads every layer, and a layer holds no more
    than its departure from those above: in a ladder.

    Attributes:
      widths: hidden widths of f.
      activation: a smooth one by default, because the Langevin chain must follow f.

    Example:
      >>> energy, latents = JointEnergy(), (jnp.ones((5, 2, 2, 3)), jnp.ones((5, 2)))
      >>> params = energy.init(jax.random.key(0), latents)
      >>> energy.apply(params, latents).shape
      (5,)
    """

    widths: tuple[int, ...] = (200, 200)
    activation: str = "gelu"

    def __post_init__(self):
        check_activation(self.activation)
        if not isinstance(self.widths, tuple) or not all(
            isinstance(width, int) for width in self.widths
        ):
            raise ValueError(
                f"joint energy widths must be a tuple of integers, got {self.widths!r}"
            )
        super().__post_init__()

    @nn.compact
    def __call__(self, latents: Latents) -> jax.Array:
        """Returns E(z), [B]."""
        flat = [z.reshape(z.shape[0], -1) for z in latents]
        f = MLP(self.widths, 1, self.activation, energy_head=True, name="f")
        return -f(jnp.concatenate(flat, axis=-1))[:, 0]
