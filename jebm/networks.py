"""Small networks shared by backbones and energies."""

import flax.linen as nn
import jax
import jax.numpy as jnp

ACTIVATIONS = {
    "gelu": nn.gelu,
    "silu": nn.silu,
    "softplus": nn.softplus,
    "tanh": nn.tanh,
    "leaky_relu": lambda x: nn.leaky_relu(x, 0.2),
}


def check_activation(name: str) -> None:
    """Raises a ValueError naming the known activations, unless `name` is one."""
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; known: {sorted(ACTIVATIONS)}")


def soft_clamp(x: jax.Array, bound: float) -> jax.Array:
    """Smoothly limits x to (-bound, bound); the identity near 0."""
    return bound * jnp.tanh(x / bound)


class MLP(nn.Module):
    """Dense layers with an activation between them.

    `energy_head` starts the last layer at zero, so that the map starts as constant 0,
    and leaves out its bias, a constant that the normaliser would cancel.
    """

    widths: tuple[int, ...]
    features: int
    activation: str = "gelu"
    energy_head: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, ...], flattened, to [B, features]."""
        x = x.reshape(x.shape[0], -1)
        for width in self.widths:
            x = ACTIVATIONS[self.activation](nn.Dense(width)(x))
        if self.energy_head:
            zeros = nn.initializers.zeros
            return nn.Dense(self.features, use_bias=False, kernel_init=zeros)(x)
        return nn.Dense(self.features)(x)
