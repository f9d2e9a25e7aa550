"""Convolutions, in the form that the platform is fast at.

    y[s i - c + u] = sum_i x[i] kernel[u],     u = 0 .. k - 1,     c = (k - s) / 2

per axis, with stride s: each input pixel adds a k x k patch to the output, and H x W
becomes s H x s W. A convolution of stride 1 is the transposed one of the mirrored
kernel.

GPUs and TPUs run XLA's own convolutions. On a CPU these are fast in one form only:
stride 1, written as XLA's CPU compiler matches it, which inside of loops it does not
bring about by itself. So all convolutions of a chain are made of that form,
`dense_form`, or of matrix products. All forms take the same parameters.

Operands are of `compute_dtype`, as in `jebm.products`. On a CPU "bfloat16" concerns the
matrix products alone: its routine for convolutions is no faster with it.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from jebm.products import product


def conv_transpose(
    x: jax.Array, kernel: jax.Array, stride: int, compute_dtype: str = "float32"
) -> jax.Array:
    """Computes the equation above; chooses the form that is fast on the platform.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, features, C]; k is a multiple of the stride, k - stride is even.
      stride: s.
      compute_dtype: of the operands, see `jebm.products`.

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
    options: dict[str, Any] = {"stride": stride, "compute_dtype": compute_dtype}
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_cpu_form, **options),
        default=functools.partial(native_form, **options),
    )


def _cpu_form(x, kernel, stride, compute_dtype):
    _, height, width, _ = x.shape
    if stride == 1:
        return _cpu_conv(x, _mirrored(kernel), 1, compute_dtype)
    if kernel.shape[0] == 2 * stride and height % 2 == 0 and width % 2 == 0:
        return karatsuba_form(x, kernel, compute_dtype)
    return patch_form(x, kernel, stride, compute_dtype)


def native_form(
    x: jax.Array, kernel: jax.Array, stride: int, compute_dtype: str = "float32"
) -> jax.Array:
    """Computes `conv_transpose` by XLA's convolution."""

    def f(x, kernel):
        return jax.lax.conv_transpose(x, kernel, (stride, stride), "SAME")

    return product(f, x, _mirrored(kernel), compute_dtype)


def patch_form(
    x: jax.Array, kernel: jax.Array, stride: int, compute_dtype: str = "float32"
) -> jax.Array:
    """Computes `conv_transpose` by a matrix product and an overlap-add.

    Each patch is cut into blocks of stride x stride pixels. Blocks tile the output:
    block (i, j) of all patches is one image, to be shifted by (i, j) blocks.
    """
    size, _, features, _ = kernel.shape
    batch, height, width, _ = x.shape
    blocks, crop = size // stride, (size - stride) // 2
    dot = functools.partial(
        jax.lax.dot_general, dimension_numbers=(((3,), (3,)), ((), ()))
    )
    patches = product(dot, x, kernel, compute_dtype)
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def karatsuba_form(
    x: jax.Array, kernel: jax.Array, compute_dtype: str = "float32"
) -> jax.Array:
    """Computes `conv_transpose`, k = 2 s, by 9 products of 2 x 2 pixels, not 16.

    Per axis, two pixels meet the two blocks of the kernel as polynomials in t, a shift
    by a block, which are multiplied at t = 0, -1 and infinity:

        (x_0 + x_1 t) (k_0 + k_1 t) = c_0 + c_1 t + c_2 t^2
        c_0 = x_0 k_0,   c_2 = x_1 k_1,   c_1 = c_0 + c_2 - (x_0 - x_1) (k_0 - k_1)

    The gradients in the pixels and in the kernel have 9 products too. What cancels in
    c_1 makes the error of rounded operands, of "bfloat16", twice that of `patch_form`.
    (Karatsuba and Ofman 1962)

    Args:
      x: [B, H, W, C], H and W even.
      kernel: [2 s, 2 s, features, C].
      compute_dtype: of the operands, see `jebm.products`.

    Returns:
      [B, s H, s W, features].
    """
    return _karatsuba_form_fwd(x, kernel, compute_dtype)[0]


def _karatsuba_form_fwd(x, kernel, compute_dtype):
    kernels = [_ahead(k, compute_dtype) for k in _block_values(kernel)]
    products = _products(_pixel_values(x), kernels, (-1, 1), compute_dtype)
    y = _overlap_products(products, kernel.shape)
    return y, (x, kernel, kernels)  # or else the kernel would be summed twice


def _karatsuba_form_bwd(compute_dtype, residuals, grad):
    x, kernel, kernels = residuals
    grads = _overlap_gradient(grad, kernel.shape)
    grads = [_once(g) for g in grads]  # else XLA makes them again for each product
    grads_x = _products(grads, kernels, (-1, 0), compute_dtype)
    pixels = [_rows(_once(p)) for p in _pixel_values(x)]
    grads_kernel = _products(map(_rows, grads), pixels, (0, 0), compute_dtype)
    (grad_x,) = jax.linear_transpose(_pixel_values, x)(grads_x)
    (grad_kernel,) = jax.linear_transpose(_block_values, kernel)(grads_kernel)
    return grad_x, grad_kernel


karatsuba_form.defvjp(_karatsuba_form_fwd, _karatsuba_form_bwd)
_once = jax.lax.optimization_barrier


def _ahead(kernel, compute_dtype):
    """Rounds a kernel where XLA may do so ahead of the loop of a chain."""
    if compute_dtype == "float32":  # rounds nothing, float64 neither
        return _once(kernel)
    return _once(kernel.astype(compute_dtype)).astype(kernel.dtype)


def _products(xs, ys, axes, compute_dtype):
    """Sums x y over an axis of each, for every pair.

    As they lie: XLA takes longer to transpose a kernel that it has summed.
    """
    of_x, of_y = axes

    def dot(x, y):
        contracted = (of_x % x.ndim,), (of_y,)
        return jax.lax.dot_general(x, y, (contracted, ((), ())))

    return [product(dot, x, y, compute_dtype) for x, y in zip(xs, ys, strict=True)]


def _rows(x):
    """Returns the pixels of all images as the rows of one matrix."""
    return x.reshape(-1, x.shape[-1])


def _pixel_values(x):
    """Computes of each 2 x 2 pixels what to multiply, each [B, H / 2, W / 2, C]."""
    batch, height, width, channels = x.shape
    pairs = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return _values(pairs, 2, 3)


def _block_values(kernel):
    """Computes the same of the kernel's 2 x 2 blocks, each [s s features, C]."""
    size, _, features, channels = kernel.shape
    stride = size // 2
    blocks = kernel.reshape(2, stride, 2, stride, features, channels)
    return [value.reshape(-1, channels) for value in _values(blocks, 0, 1)]


def _values(array, axis, next_axis):
    """Computes the values along two axes, the second counted without the first."""
    return [
        value
        for row in _values_along(array, axis)
        for value in _values_along(row, next_axis)
    ]


def _values_along(array, axis):
    """Computes the values at 0, -1 and infinity of pairs along an axis."""
    first, second = (a.squeeze(axis) for a in _split(array, 1, axis))
    return first, first - second, second


def _overlap_products(products, kernel_shape):
    """Joins the products, each [B, H / 2, W / 2, s s features], to the image."""
    size, _, features, _ = kernel_shape
    stride, crop = size // 2, size // 4
    batch, rows, columns, _ = products[0].shape
    shape = batch, rows, columns, stride, stride, features
    products = [p.reshape(shape) for p in products]
    # Of each axis: even and odd blocks.
    by_row = [_overlap(products[i::3], 1) for i in range(3)]
    tiles = [_overlap([row[i] for row in by_row], 2) for i in range(2)]
    image = jnp.stack([jnp.stack(tile, 3) for tile in tiles], 2)
    image = image.transpose(0, 1, 2, 5, 3, 4, 6, 7).reshape(
        batch, (rows + 1) * 2 * stride, (columns + 1) * 2 * stride, features
    )
    height, width = rows * 2 * stride, columns * 2 * stride
    return image[:, crop : crop + height, crop : crop + width]


def _overlap_gradient(grad, kernel_shape):
    """Takes the gradient of `_overlap_products` apart: one for each product."""
    size, _, features, _ = kernel_shape
    stride, crop = size // 2, size // 4
    batch, height, width, _ = grad.shape
    rows, columns = height // (2 * stride), width // (2 * stride)
    padding = (crop, 2 * stride - crop)
    image = jnp.pad(grad, ((0, 0), padding, padding, (0, 0))).reshape(
        batch, rows + 1, 2, stride, columns + 1, 2, stride, features
    )

    def tile(i, j):
        return _once(image[:, :, i, :, :, j].transpose(0, 1, 3, 2, 4, 5))

    even, odd = (_overlap_transposed(tile(0, j), tile(1, j), 1) for j in range(2))
    products = [
        p
        for tiles in zip(even, odd, strict=True)
        for p in _overlap_transposed(*tiles, 2)
    ]
    return [p.reshape(batch, rows, columns, -1) for p in products]


def _overlap(products, axis):
    """Returns even and odd blocks; the last of a pair is the first of the next."""
    first, middle, last = products
    odd = first + last - middle
    begin, rest = _split(first, 1, axis)
    before, end = _split(last, last.shape[axis] - 1, axis)
    even = jnp.concatenate([begin, rest + before, end], axis)
    return even, jnp.concatenate([odd, jnp.zeros_like(end)], axis)


def _overlap_transposed(even, odd, axis):
    """Returns the gradients of the three products, given those of the blocks."""
    num = even.shape[axis] - 1
    first, last = _split(even, num, axis)[0], _split(even, 1, axis)[1]
    middle = _split(odd, num, axis)[0]
    return first + middle, -middle, last + middle


def _split(array, index, axis):
    return jax.lax.split(array, (index, array.shape[axis] - index), axis)


def conv(
    x: jax.Array, kernel: jax.Array, stride: int = 1, compute_dtype: str = "float32"
) -> jax.Array:
    """Computes y[i] = sum_u x[s i + u - c] kernel[u] per axis, c = (k - 1) // 2.

    Args:
      x: [B, H, W, C], zero outside.
      kernel: [k, k, C, features].
      stride: s.
      compute_dtype: of the operands, see `jebm.products`.

    Returns:
      [B, H / s, W / s, features], sides rounded up.

    Example:
      >>> conv(jnp.ones((1, 2, 3, 1)), jnp.ones((3, 3, 1, 1)))[0, :, :, 0]
      Array([[4., 6., 4.],
             [4., 6., 4.]], dtype=float32)
    """
    options: dict[str, Any] = {"stride": stride, "compute_dtype": compute_dtype}
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_cpu_conv, **options),
        default=functools.partial(native_conv, **options),
    )


def stand_in(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], *args,
    compute_dtype: str, **kwargs,
) -> jax.Array:  # fmt: skip
    """Computes `conv` in place of the `conv_general_dilated` of an `nn.Conv`.

    Padding "SAME" on sides that the stride divides is that of `conv`, as fast in a
    chain as out of it.

    Example:
      >>> halve = functools.partial(stand_in, compute_dtype="bfloat16")
      >>> layer = nn.Conv(5, (4, 4), strides=2, conv_general_dilated=halve)
      >>> layer.init_with_output(jax.random.key(0), jnp.ones((1, 8, 8, 3)))[0].shape
      (1, 4, 4, 5)
    """
    del args, kwargs
    return conv(x, kernel, strides[0], compute_dtype)


def native_conv(
    x: jax.Array, kernel: jax.Array, stride: int, compute_dtype: str = "float32"
) -> jax.Array:
    """Computes `conv` by XLA's convolution."""
    padding = [_padding(side, kernel.shape[0], stride) for side in x.shape[1:3]]

    def f(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=_NUMBERS
        )

    return product(f, x, kernel, compute_dtype)


def _padding(side, size, stride):
    """Counts the pixels that a convolution reads before and after those of an axis."""
    low = (size - 1) // 2
    return low, (-(-side // stride) - 1) * stride + size - low - side


def _cpu_conv(x, kernel, stride, compute_dtype):
    if stride > 1:
        return _conv_of_blocks(x, kernel, stride)
    if kernel.shape[0] % 2 and _patches_are_fast(kernel, compute_dtype):
        return patch_form(x, _mirrored(kernel), 1, compute_dtype)
    return dense_form(x, kernel, _padding(x.shape[1], kernel.shape[0], 1))


def _patches_are_fast(kernel, compute_dtype):
    size, _, channels, features = kernel.shape
    if compute_dtype != "float32" and size**2 * features <= channels:
        return True  # a patch is no larger than the pixel that it is of
    return channels * features < _FEW


# Channels read times channels made, below which patches are faster.
_FEW = 64
_NUMBERS = ("NHWC", "HWIO", "NHWC")


def _mirrored(kernel):
    """Returns the kernel that reads what this one writes."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _conv_of_blocks(x, kernel, stride):
    """Computes `conv` as one of stride 1: blocks of s x s pixels are the pixels."""
    batch, height, width, channels = x.shape
    size, features = kernel.shape[0], kernel.shape[-1]
    blocks = -(-size // stride)
    rest = blocks * stride - size  # zeros make the kernel a number of blocks
    low = (size - 1) // 2
    padding = [
        (low, _padding(side, size, stride)[1] + rest, 0) for side in (height, width)
    ]
    zero, none = jnp.zeros((), x.dtype), (0, 0, 0)
    x = jax.lax.pad(x, zero, (none, *padding, none))
    rows, columns = x.shape[1] // stride, x.shape[2] // stride
    x = x.reshape(batch, rows, stride, columns, stride, channels)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, -1)
    kernel = jnp.pad(kernel, ((0, rest), (0, rest), (0, 0), (0, 0)))
    kernel = kernel.reshape(blocks, stride, blocks, stride, channels, features)
    kernel = kernel.transpose(0, 2, 1, 3, 4, 5)
    return dense_form(x, kernel.reshape(blocks, blocks, -1, features), (0, 0))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def dense_form(x: jax.Array, kernel: jax.Array, padding: tuple[int, int]) -> jax.Array:
    """Computes a convolution of stride 1 that is fast on XLA's CPU, in loops as well.

    That compiler has a fast routine for images [B, H, W, C] and kernels
    [k, k, C, features] as they lie. Only outside of loops does it bring others into
    this order, as those of gradients are; so they are written in it here.

    Args:
      x: [B, H, W, C].
      kernel: [k, k, C, features].
      padding: rows, and columns, of zeros before and after the image.

    Returns:
      [B, H + low + high - k + 1, W + low + high - k + 1, features].
    """
    # Behind a barrier, or else XLA takes what rearranges the kernel into the
    # convolution, which is then another.
    return jax.lax.conv_general_dilated(
        x, _once(kernel), (1, 1), (padding, padding), dimension_numbers=_NUMBERS
    )


def _dense_form_fwd(x, kernel, padding):
    return dense_form(x, kernel, padding), (x, kernel)


def _dense_form_bwd(padding, residuals, grad):
    x, kernel = residuals
    back = tuple(kernel.shape[0] - 1 - pad for pad in padding)
    grad_x = dense_form(grad, _mirrored(kernel), back)
    if x.shape[-1] <= grad.shape[-1]:
        return grad_x, _kernel_grad(x, grad, padding, kernel.shape[0])
    # Of the two images the one of fewer channels is copied for every tap.
    return grad_x, _mirrored(_kernel_grad(grad, x, back, kernel.shape[0]))


dense_form.defvjp(_dense_form_fwd, _dense_form_bwd)


def _kernel_grad(x, grad, padding, size):
    """Computes sum_i x[i + u - low] grad[i] for every tap u, [k, k, C, features]."""
    batch, height, width, features = grad.shape
    x = jnp.pad(x, ((0, 0), padding, padding, (0, 0)))

    def product(pair):
        x, grad = pair
        taps = [
            x[:, u : u + height, v : v + width]
            for u in range(size)
            for v in range(size)
        ]
        return _rows(jnp.concatenate(taps, -1)).T @ _rows(grad)

    # A few images at a time: copies of all of them would not stay in the cache.
    most = max(1, _ROWS // (height * width))
    some = max(n for n in range(1, batch + 1) if batch % n == 0 and n <= most)
    parts = [a.reshape(-1, some, *a.shape[1:]) for a in (x, grad)]
    zeros = jnp.zeros((size * size * x.shape[-1], features), grad.dtype)
    total, _ = jax.lax.scan(lambda sum, pair: (sum + product(pair), None), zeros, parts)
    return total.reshape(size, size, -1, features)


_ROWS = 1024


def depthwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves each channel by itself, zero outside.

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
    """Computes `depthwise_conv` by XLA's convolution."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=_NUMBERS,
        feature_group_count=x.shape[-1],
    )  # fmt: skip


@jax.custom_vjp
def shifted_form(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes `depthwise_conv` by shifted copies, each times its tap of the kernel."""
    return _image_by_image(x, kernel)


def _sums_of_taps(x, kernel):
    taps = kernel.reshape(-1, 1, 1, kernel.shape[-1])

    def one(image):
        copies = _shifts(image, kernel.shape[0])
        return sum(copy * tap for copy, tap in zip(copies, taps, strict=True))

    return jax.lax.map(one, x)


# XLA takes the sum over taps again in all that reads it, but not out of a loop; so all
# images are in one loop, those of vmapped chains, which are of one image each, too.
_image_by_image = jax.custom_batching.custom_vmap(_sums_of_taps)


@_image_by_image.def_vmap
def _images_by_image(num, batched, x, kernel):
    x_batched, kernel_batched = batched
    if kernel_batched:
        axes = 0 if x_batched else None, 0
        return jax.vmap(_sums_of_taps, axes)(x, kernel), True
    y = _image_by_image(x.reshape(-1, *x.shape[2:]), kernel)
    return y.reshape(num, -1, *y.shape[1:]), True


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
    """Returns the copies of an image [H, W, C] that lie under the taps of a kernel."""
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
      compute_dtype: of the operands, see `jebm.products`.

    Example:
      >>> layer = ConvTranspose(features=5, size=4, stride=2)
      >>> layer.init_with_output(jax.random.key(0), jnp.ones((1, 8, 8, 3)))[0].shape
      (1, 16, 16, 5)
    """

    features: int
    size: int
    stride: int
    compute_dtype: str = "float32"

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
        y = conv_transpose(x, kernel, self.stride, self.compute_dtype)
        return y + bias.reshape(1, 1, 1, -1)
