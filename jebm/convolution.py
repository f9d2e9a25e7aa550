"""Convolutions, in the form that the platform is fast at.

    y[s i - c + u] = sum_i x[i] kernel[u],     u = 0 .. k - 1,     c = (k - s) / 2

per axis, with stride s: each input pixel adds a k x k patch to the output, and H x W
becomes s H x s W. On a CPU one matrix product makes all patches at once, which are then
added up; elsewhere it is XLA's own convolution. Both take the same parameters.

A convolution of stride 1 is the transposed one of the mirrored kernel. One of each
channel by itself is, on a CPU, a sum of shifted products.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype


def conv_transpose(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The equation above, in either form: here alone is it chosen.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, features, C]; k is a multiple of the stride, k - stride is even.
      stride: s.

    Returns:
      [B, s H, s W, features], as `jax.lax.conv_transpose` with padding "SAME" and
      `transpose_kernel=True`.

    Raises:
      ValueError: for a kernel that does not fit the stride.

    Example:
      >>> conv_transpose(jnp.ones((1, 2, 2, 1)), jnp.ones((4, 4, 1, 1)), 2)[0, :, :, 0]
      Array([[1., 2., 2., 1.],
             [2., 4., 4., 2.],
             [2., 4., 4., 2.],
             [1., 2., 2., 1.]], dtype=float32)
    """
    size = kernel.shape[0]
    if size % stride or (size - stride) % 2:
        raise ValueError(
            f"the kernel's size must be a multiple of the stride {stride} and exceed "
            f"it by an even number, got {size}"
        )
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: patch_form(x, kernel, stride),
        default=lambda x, kernel: native_form(x, kernel, stride),
    )


def native_form(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`conv_transpose` by XLA's convolution."""
    return jax.lax.conv_transpose(
        x, kernel, (stride, stride), "SAME", transpose_kernel=True
    )


def patch_form(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """`conv_transpose` by a matrix product and an overlap-add.

    Each patch is cut into blocks of stride x stride pixels. Blocks tile the output:
    block (i, j) of all patches is one image, to be shifted by (i, j) blocks.
    """
    size, _, features, _ = kernel.shape
    batch, height, width, _ = x.shape
    blocks, crop = size // stride, (size - stride) // 2
    patches = jax.lax.dot_general(x, kernel, (((3,), (3,)), ((), ())))
    tiles = patches.reshape(
        batch, height, width, blocks, stride, blocks, stride, features
    )
    tiles = _add_shifted(tiles, 1, 3)  # [B, rows, W, s, blocks, s, features]
    tiles = _add_shifted(tiles, 2, 4)  # [B, rows, columns, s, s, features]
    _, rows, columns, *_ = tiles.shape
    image = tiles.transpose(0, 1, 3, 2, 4, 5).reshape(
        batch, rows * stride, columns * stride, features
    )
    return image[:, crop : crop + height * stride, crop : crop + width * stride]


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """A convolution: y[i] = sum_u x[s i + u - c] kernel[u] per axis, c = (k - 1) / 2.

    Args:
      x: [B, H, W, C], zero outside.
      kernel: [k, k, C, features], k odd.
      stride: s, which divides H and W.

    Returns:
      [B, H / s, W / s, features].

    Example:
      >>> conv(jnp.ones((1, 2, 3, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0]
      Array([[4., 6., 4.],
             [4., 6., 4.]], dtype=float32)
    """

    def native(x, kernel):
        pad = (kernel.shape[0] - 1) // 2
        padding = [(pad, pad)] * 2
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=numbers
        )

    if stride > 1:
        return native(x, kernel)

    def patches(x, kernel):
        return patch_form(x, kernel[::-1, ::-1].swapaxes(2, 3), 1)

    return jax.lax.platform_dependent(x, kernel, cpu=patches, default=native)


def depthwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution of each channel by itself, zero outside.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, 1, C], k odd.

    Returns:
      [B, H, W, C].

    Example:
      >>> kernel = jnp.ones((3, 3, 1, 2))
      >>> depthwise_conv(jnp.ones((1, 1, 3, 2)), kernel)[0, 0]
      Array([[2., 2.],
             [3., 3.],
             [2., 2.]], dtype=float32)
    """
    return jax.lax.platform_dependent(
        x, kernel, cpu=shifted_form, default=depthwise_native_form
    )


def depthwise_native_form(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`depthwise_conv` by XLA's convolution."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=numbers,
        feature_group_count=x.shape[-1],
    )  # fmt: skip


@jax.custom_vjp
def shifted_form(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`depthwise_conv` by shifted copies, each times its tap of the kernel.

    Image by image: XLA would take the sum over taps again inside of whatever reduces
    the images, and sums over many images at once are slow.
    """
    taps = kernel.reshape(-1, 1, 1, kernel.shape[-1])

    def one(image):
        copies = _shifts(image, kernel.shape[0])
        return sum(copy * tap for copy, tap in zip(copies, taps, strict=True))

    return jax.lax.map(one, x)


def _shifted_form_fwd(x, kernel):
    return shifted_form(x, kernel), (x, kernel)


def _shifted_form_bwd(residuals, grad):
    x, kernel = residuals

    def one(total, pair):
        image, grad = pair
        copies = _shifts(image, kernel.shape[0])
        return total + jnp.stack([(c * grad).sum((0, 1)) for c in copies]), None

    zeros = jnp.zeros_like(kernel, shape=(kernel.shape[0] ** 2, kernel.shape[-1]))
    grad_kernel, _ = jax.lax.scan(one, zeros, (x, grad))
    grad_x = shifted_form(grad, kernel[::-1, ::-1])
    return grad_x, grad_kernel.reshape(kernel.shape)


shifted_form.defvjp(_shifted_form_fwd, _shifted_form_bwd)


def _shifts(image, size):
    """The copies of an image [H, W, C] that lie under the taps of a kernel."""
    pad = (size - 1) // 2
    height, width, _ = image.shape
    padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    return [
        padded[u : u + height, v : v + width] for u in range(size) for v in range(size)
    ]


def _add_shifted(tiles, axis, block_axis):
    """Sums over `block_axis`, with block i shifted by i along `axis`."""
    num = tiles.shape[block_axis]

    def shifted(i, block):
        padding = [(0, 0)] * (tiles.ndim - 1)
        padding[axis] = (i, num - 1 - i)
        return jnp.pad(block.squeeze(block_axis), padding)

    # Split rather than indexed: its gradient is one concatenation.
    blocks = jax.lax.split(tiles, (1,) * num, block_axis)
    return sum(shifted(i, block) for i, block in enumerate(blocks))


class ConvTranspose(nn.Module):
    """A transposed convolution with a bias per channel.

    Attributes:
      features: channels of the output.
      size: k, a multiple of the stride that exceeds it by an even number.
      stride: s.

    Example:
      >>> layer = ConvTranspose(features=5, size=4, stride=2)
      >>> layer.init_with_output(jax.random.key(0), jnp.ones((1, 8, 8, 3)))[0].shape
      (1, 16, 16, 5)
    """

    features: int
    size: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, stride H, stride W, features]."""
        # An output pixel is the sum of (size / stride)^2 taps only, of the size^2.
        init = nn.initializers.variance_scaling(
            self.stride**2, "fan_in", "truncated_normal", in_axis=-1, out_axis=-2
        )
        shape = (self.size, self.size, self.features, x.shape[-1])
        kernel = self.param("kernel", init, shape, jnp.float32)
        zeros = nn.initializers.zeros
        bias = self.param("bias", zeros, (self.features,), jnp.float32)
        x, kernel, bias = promote_dtype(x, kernel, bias)
        return conv_transpose(x, kernel, self.stride) + bias.reshape(1, 1, 1, -1)
