"""Small networks shared by backbones and energies."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jebm.convolution import ConvTranspose
from jebm.names import unknown_name_message
from jebm.products import dense

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
        raise ValueError(unknown_name_message("activation", name, ACTIVATIONS))


@jax.custom_vjp
def silu(x: jax.Array) -> jax.Array:
    """Computes x sigmoid(x), as `nn.silu`; its gradient computes the sigmoid anew.

    For maps of many features: to store a sigmoid costs more than to compute it twice.

    Example:
      >>> jax.grad(silu)(0.0)
      Array(0.5, dtype=float32, weak_type=True)
    """
    return x * jax.nn.sigmoid(x)


def _silu_fwd(x):
    return silu(x), x


def _silu_bwd(x, grad):
    # Behind a barrier, or else the compiler stores the first one.
    x = jax.lax.optimization_barrier(x)
    sigmoid = jax.nn.sigmoid(x)
    return (grad * sigmoid * (1 + x * (1 - sigmoid)),)


silu.defvjp(_silu_fwd, _silu_bwd)


def soft_clamp(x: jax.Array, bound: float) -> jax.Array:
    """Limits x smoothly to (-bound, bound); the identity near 0."""
    return bound * jnp.tanh(x / bound)


class MLP(nn.Module):
    """Dense layers with an activation between them.

    `energy_head` starts the last layer at zero, so that the map starts as constant 0,
    and leaves out its bias, a constant that the normaliser would cancel.
    `compute_dtype` is that of the operands of products, see `jebm.products`.
    """

    widths: tuple[int, ...]
    features: int
    activation: str = "gelu"
    energy_head: bool = False
    compute_dtype: str = "float32"

    def __post_init__(self):
        check_widths("widths", self.widths)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, ...], flattened, to [B, features]."""
        x = x.reshape(x.shape[0], -1)
        for width in self.widths:
            x = ACTIVATIONS[self.activation](dense(width, self.compute_dtype)(x))
        if self.energy_head:
            head = {"use_bias": False, "kernel_init": nn.initializers.zeros}
            return dense(self.features, self.compute_dtype, **head)(x)
        return dense(self.features, self.compute_dtype)(x)


class Logit(nn.Module):
    """The logit of a probability, or a log-ratio: an `MLP` and a bias, both 0 at first.

    The bias counts here: no normaliser cancels it, unlike that of an energy.

    Example:
      >>> Logit((8,)).init_with_output(jax.random.key(0), jnp.ones((2, 5)))[0]
      Array([0., 0.], dtype=float32)
    """

    widths: tuple[int, ...]
    activation: str = "gelu"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, D] to [N]."""
        bias = self.param("bias", nn.initializers.zeros, (), jnp.float32)
        network = MLP(self.widths, 1, self.activation, energy_head=True)
        return network(x)[:, 0] + bias


def required_shape(output_shape: tuple[int, int, int] | None) -> tuple[int, int, int]:
    """Returns a backbone's `output_shape`; raises a ValueError if it is not known."""
    if output_shape is None:
        raise ValueError(
            "output_shape is not known: give it to the backbone, or make the backbone "
            "part of a jebm.Model"
        )
    return output_shape


def check_widths(name: str, widths) -> None:
    """Raises a ValueError unless `widths` is a tuple of positive integers."""
    if not isinstance(widths, tuple) or not all(
        isinstance(w, int) and not isinstance(w, bool) and w > 0 for w in widths
    ):
        raise ValueError(f"{name} must be a tuple of positive integers, got {widths!r}")


def check_stages(widths: tuple[int, ...], output_shape: tuple[int, int, int]) -> None:
    """Raises a ValueError unless `Deconv` can make `output_shape` with these widths."""
    height, width, _ = output_shape
    stages = len(widths)
    if not stages or height % 2 ** (stages - 1) or width % 2 ** (stages - 1):
        raise ValueError(
            "each stage of a deconvolution after the first doubles the resolution: "
            f"decoder_widths {widths} cannot end at {height}x{width}"
        )


class Deconv(nn.Module):
    """The generator of arXiv 2306.06323: a vector, a coarse map, then ever finer ones.

    The first stage is linear from the vector to a map of H / 2^(stages - 1) rows, each
    further one a 4 x 4 transposed convolution of stride 2, with an activation after
    each; a 3 x 3 convolution makes the output.

    Attributes:
      widths: channels of each stage, coarse to fine.
      output_shape: (H, W, channels).
      activation: after each stage.
      compute_dtype: of the operands of products, see `jebm.products`.

    Example:
      >>> network = Deconv(widths=(8, 4), output_shape=(16, 16, 3))
      >>> network.init_with_output(jax.random.key(0), jnp.ones((2, 5)))[0].shape
      (2, 16, 16, 3)
    """

    widths: tuple[int, ...]
    output_shape: tuple[int, int, int]
    activation: str = "leaky_relu"
    compute_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, D] to [B, *output_shape]."""
        check_stages(self.widths, self.output_shape)
        activation = ACTIVATIONS[self.activation]
        first, *others = self.widths
        height, width, channels = self.output_shape
        height, width = height >> len(others), width >> len(others)
        # A transposed convolution of one pixel: one bias per channel, not per unit.
        pixels = height * width * first
        x = dense(pixels, self.compute_dtype, use_bias=False)(x)
        bias = self.param("bias", nn.initializers.zeros, (first,), jnp.float32)
        x = x.reshape(-1, height, width, first) + bias.reshape(1, 1, 1, -1)
        for features in others:
            x = ConvTranspose(features, 4, 2, self.compute_dtype)(activation(x))
        return ConvTranspose(channels, 3, 1, self.compute_dtype)(activation(x))
