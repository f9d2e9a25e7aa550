"""NVAE: many groups of latent maps around one top-down state (arXiv 2007.03898).

    h_L = a learned map,     z_i ~ N(mu_i(h_i), sigma_i(h_i)),     z_L ~ N(0, 1.01^2)
    h_{i-1} = cells(W_i [h_i, z_i]),   at a finer scale where the layer below is at one
    q(z_i | z_{>i}, x) = N(mu_i + dmu_i, sigma_i dsigma_i),   d of (h_i, x)

Means and log-scales are softly clamped to (-5, 5) and 0.01 is added to every sigma.
Flows that keep volumes may follow the draw from q.

Residual cells have batch normalisation: its statistics are those of the batch where the
collection "batch_stats" is mutable, as in training, and running averages elsewhere.
Each normalised kernel is sown into the collection "kernels", for `jebm.spectral`.
Parameters are those of the published networks, so `tools.convert.nvae` can fill them.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype

from jebm.convolution import conv, depthwise_conv
from jebm.distributions import Normal
from jebm.likelihoods import reduce_bit_depth
from jebm.networks import required_shape, silu, soft_clamp
from jebm.products import check_compute_dtype, dense


class NVAE(nn.Module):
    """Generator and two-way inference of NVAE.

    A map that has been halved d times has `width` 2^d features in the decoder and
    `encoder_width` 2^d in the encoder; d is `image_halvings` at the finest latents.

    Attributes:
      output_shape: (H, W, channels) of the decoder's output; None for what the model
        asks for.
      groups: of latents at each scale, finest (next to the image) to coarsest.
      latent_channels: of each group.
      width: features of the decoder at the image's resolution.
      encoder_width: features of the encoder there.
      image_halvings: how often the image is halved before the finest latents.
      preprocess_cells: residual cells of the encoder to each of these halvings.
      postprocess_cells: of the decoder, to each doubling on the way back.
      encoder_cells: of the encoder to each group.
      decoder_cells: of the decoder between two groups.
      num_flows: pairs of autoregressive shifts that follow the draw from q.
      squeeze_excitation: whether cells end with it.
      residual_posterior: whether q is told as a departure from the prior.
      padding: dark pixels that the encoder adds on each side and the decoder crops.
      bits: of each colour that the encoder sees.
      compute_dtype: of the operands of products, see `jebm.products`; depthwise
        convolutions are none.

    Example:
      >>> from jebm.hierarchy import top_down, transport
      >>> backbone = NVAE((8, 8, 1), groups=(1, 1), latent_channels=2, width=2)
      >>> backbone.latent_shapes
      ((4, 4, 2), (2, 2, 2))
      >>> eps = tuple(jnp.zeros((3, *shape)) for shape in backbone.latent_shapes)
      >>> def generate(backbone):
      ...     return backbone.decode(top_down(backbone, 3, transport(eps))[2])
      >>> nn.init_with_output(generate, backbone)(jax.random.key(0))[0].shape
      (3, 8, 8, 1)
    """

    output_shape: tuple[int, int, int] | None = None
    groups: tuple[int, ...] = (10, 5)
    latent_channels: int = 20
    width: int = 32
    encoder_width: int = 32
    image_halvings: int = 1
    preprocess_cells: int = 2
    postprocess_cells: int = 2
    encoder_cells: int = 2
    decoder_cells: int = 2
    num_flows: int = 0
    squeeze_excitation: bool = True
    residual_posterior: bool = True
    padding: int = 0
    bits: int = 8
    compute_dtype: str = "float32"

    has_encoder = True

    @property
    def is_posterior_normal(self) -> bool:
        """Says whether q is normal: no flow follows the draw from it."""
        return not self.num_flows

    def __post_init__(self):
        _check_fields(self)
        super().__post_init__()

    @property
    def halvings(self) -> tuple[int, ...]:
        """Counts how often the map of each group has been halved, bottom to top."""
        scales = range(len(self.groups))
        return tuple(
            self.image_halvings + s for s in scales for _ in range(self.groups[s])
        )

    @property
    def latent_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """Returns the shapes of the groups, bottom (next to the image) to top."""
        height, width = (
            n + 2 * self.padding for n in required_shape(self.output_shape)[:2]
        )
        return tuple(
            (height >> d, width >> d, self.latent_channels) for d in self.halvings
        )

    @property
    def encoder_modules(self) -> tuple[str, ...]:
        """Names the top-level modules that inference alone uses."""
        layers = range(len(self.halvings))
        return (
            "stem",
            *(f"preprocess_{d}" for d in range(self.image_halvings)),
            *(f"encoders_{i}" for i in layers),
            *(f"combiners_{i}" for i in layers[:-1]),
            "encoder_top",
            *(f"posteriors_{i}" for i in layers),
            *(f"flows_{i}" for i in layers if self.num_flows),
        )

    def setup(self):
        """Declares the encoder, the decoder, and what joins them at each group."""
        depths, dtype = self.halvings, self.compute_dtype
        settings = self.squeeze_excitation, dtype
        top = len(depths) - 1

        def encoder_cells(depth, halve):
            features = self.encoder_width << depth
            return [EncoderCell(features, step, *settings) for step in halve]

        def decoder_cells(depth, double, expansion):
            features = self.width << depth
            return [
                DecoderCell(features, step, expansion, *settings) for step in double
            ]

        keep = [False]  # the resolution
        conv = functools.partial(Conv, compute_dtype=dtype)
        self.stem = conv(self.encoder_width, 3)
        self.preprocess = [
            nn.Sequential(
                encoder_cells(d, keep * (self.preprocess_cells - 1))
                + encoder_cells(d + 1, [True])
            )
            for d in range(self.image_halvings)
        ]
        # Cells of group i, after one that halves where the group below is finer.
        self.encoders = [
            nn.Sequential(
                encoder_cells(
                    depths[i],
                    [True] * (i > 0 and depths[i] > depths[i - 1])
                    + keep * self.encoder_cells,
                )
            )
            for i in range(top + 1)
        ]
        self.combiners = [conv(self.encoder_width << d, 1) for d in depths[:-1]]
        self.encoder_top = conv(self.encoder_width << depths[-1], 1)
        heads = 2 * self.latent_channels
        self.posteriors = [conv(heads, 3) for _ in depths]
        if self.num_flows:
            shifts = 2 * self.num_flows
            self.flows = [Flow(self.latent_channels, shifts, dtype) for _ in depths]

        self.top = self.param(
            "top",
            nn.initializers.uniform(1.0),
            (*self.latent_shapes[-1][:2], self.width << depths[-1]),
            jnp.float32,
        )
        self.priors = [conv(heads, 1) for _ in depths[:-1]]
        self.writers = [conv(self.width << d, 1) for d in depths]
        # From group i + 1 to group i.
        self.decoders = [
            nn.Sequential(
                decoder_cells(
                    depths[i],
                    [True] * (depths[i] < depths[i + 1]) + keep * self.decoder_cells,
                    expansion=6,
                )
            )
            for i in range(top)
        ]
        self.postprocess = [
            nn.Sequential(
                decoder_cells(
                    d, [True] + keep * (self.postprocess_cells - 1), expansion=3
                )
            )
            for d in reversed(range(self.image_halvings))
        ]
        self.image = conv(required_shape(self.output_shape)[-1], 3)

    def start(self, batch: int) -> jax.Array:
        """Returns the state that the top group reads, [B, H_L, W_L, features]."""
        return jnp.broadcast_to(self.top, (batch, *self.top.shape))

    def prior(self, i: int, state: jax.Array) -> Normal:
        """Returns p_beta(z_i | z_{>i})."""
        return _clamped(*self._prior(i, state))

    def merge(self, i: int, state: jax.Array, z: jax.Array) -> jax.Array:
        """Writes z_i to the state, as the group below reads it."""
        state = self.writers[i](jnp.concatenate([state, z], axis=-1))
        return self.decoders[i - 1](state) if i else state

    def decode(self, state: jax.Array) -> jax.Array:
        """Computes likelihood parameters, [B, *output_shape]."""
        for cells in self.postprocess:
            state = cells(state)
        pad = self.padding
        height, width, _ = required_shape(self.output_shape)
        output = self.image(nn.elu(state))
        return output[:, pad : pad + height, pad : pad + width]

    def encode(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Encodes images [B, H, W, C] in [0, 1] as features by group, bottom to top."""
        pad = (self.padding, self.padding)
        x = jnp.pad(reduce_bit_depth(x, self.bits), ((0, 0), pad, pad, (0, 0)))
        x = self.stem(2 * x - 1)
        for cells in self.preprocess:
            x = cells(x)
        features = []
        for cells in self.encoders:
            x = cells(x)
            features.append(x)
        features[-1] = nn.elu(self.encoder_top(nn.elu(x)))
        return tuple(features)

    def posterior(
        self,
        i: int,
        state: jax.Array,
        features: tuple[jax.Array, ...],
        prior: Normal,
        noise: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Transports noise [B, *shape_i] to z_i of q(z_i | z_{>i}, x).

        Returns z_i [B, *shape_i], differentiable, and log q in nats, [B].
        """
        is_top = i == len(self.halvings) - 1
        read = features[i] if is_top else features[i] + self.combiners[i](state)
        loc, log_scale = jnp.split(self.posteriors[i](read), 2, axis=-1)
        if self.residual_posterior and not is_top:
            # What is clamped is the sum: the prior's own clamp comes too early.
            prior_loc, prior_log_scale = self._prior(i, state)
            loc, log_scale = prior_loc + loc, prior_log_scale + log_scale
        q = _clamped(loc, log_scale)
        z = q.transport(noise)
        log_q = q.log_prob(z)
        return (self.flows[i](z) if self.num_flows else z), log_q

    def _prior(self, i, state):
        """Computes mean and log-scale of z_i given z_{>i}, before the clamp."""
        if i == len(self.halvings) - 1:
            zeros = jnp.zeros_like(state, shape=(len(state), *self.latent_shapes[i]))
            return zeros, zeros
        return jnp.split(self.priors[i](nn.elu(state)), 2, axis=-1)


def _clamped(loc, log_scale):
    return Normal(soft_clamp(loc, 5.0), jnp.exp(soft_clamp(log_scale, 5.0)) + 0.01)


class EncoderCell(nn.Module):
    """x + g(x) / 10, with g two 3 x 3 convolutions, each after a norm and a swish."""

    features: int
    halve: bool
    squeeze_excitation: bool
    compute_dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, features], or half of H and W."""
        stride, dtype = 2 if self.halve else 1, self.compute_dtype
        conv = functools.partial(Conv, self.features, 3, compute_dtype=dtype)
        y = conv(stride)(silu(BatchNorm()(x)))
        y = conv()(silu(BatchNorm()(y)))
        if self.squeeze_excitation:
            y = SqueezeExcitation(dtype)(y)
        if self.halve:  # by its name in checkpoints
            x = FactorizedReduce(self.features, dtype, name="Halve_0")(x)
        return x + 0.1 * y


class DecoderCell(nn.Module):
    """x + g(x) / 10, with g a depthwise convolution between two of single pixels."""

    features: int
    double: bool
    expansion: int
    squeeze_excitation: bool
    compute_dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, features], or the double of H and W."""
        hidden, dtype = self.expansion * x.shape[-1], self.compute_dtype
        y = BatchNorm()(x)
        # Doubled after what looks at single pixels, which is the same at less cost.
        y = PlainConv(hidden, 1, compute_dtype=dtype)(y)
        y = silu(BatchNorm()(y))
        if self.double:
            y = y.repeat(2, axis=1).repeat(2, axis=2)
        y = PlainConv(hidden, 5, depthwise=True)(y)
        y = silu(BatchNorm()(y))
        y = BatchNorm()(PlainConv(self.features, 1, compute_dtype=dtype)(y))
        if self.squeeze_excitation:
            y = SqueezeExcitation(dtype)(y)
        if self.double:  # by its name in checkpoints
            x = BilinearUp(self.features, dtype, name="Double_0")(x)
        return x + 0.1 * y


class SqueezeExcitation(nn.Module):
    """Features, each times a gate that sees the means of all of them over the map."""

    compute_dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to the same."""
        features, dtype = x.shape[-1], self.compute_dtype
        gate = nn.relu(dense(max(features // 16, 4), dtype)(x.mean(axis=(1, 2))))
        gate = nn.sigmoid(dense(features, dtype)(gate))
        return x * gate[:, None, None]


class FactorizedReduce(nn.Module):
    """Half of the resolution: each pixel of a 2 x 2 block gives part of the features.

    The parts, each by its own convolution, are of the pixels (row, column) = (0, 0),
    (1, 1), (0, 1) and (1, 0) of the block, in this order.
    """

    features: int
    compute_dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / 2, W / 2, features]."""
        x, part = silu(x), self.features // 4
        corners = {(0, 0): part, (1, 1): part, (0, 1): part}
        corners[1, 0] = self.features - 3 * part
        return jnp.concatenate(
            [
                Conv(features, 1, compute_dtype=self.compute_dtype)(
                    x[:, row::2, column::2]
                )
                for (row, column), features in corners.items()
            ],
            axis=-1,
        )


class BilinearUp(nn.Module):
    """The double of the resolution, linearly between pixels, corners on corners."""

    features: int
    compute_dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, 2 H, 2 W, features]."""
        # Features first, at the coarse resolution: the two maps commute.
        dtype = self.compute_dtype
        x = Conv(self.features, 1, use_bias=False, compute_dtype=dtype)(x)
        rows, columns = (_interpolation(n).astype(x.dtype) for n in x.shape[1:3])
        return jnp.einsum("rh,bhwc,sw->brsc", rows, x, columns)


def _interpolation(size):
    """Returns weights [2 size, size] for positions that divide 0 .. size - 1 evenly."""
    position = np.linspace(0, size - 1, 2 * size)[:, None]
    return np.maximum(0, 1 - np.abs(position - np.arange(size)))


class BatchNorm(nn.Module):
    """Batch normalisation, by running averages unless these are being learned."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to the same."""
        shape, zeros, ones = x.shape[-1:], nn.initializers.zeros, nn.initializers.ones
        scale = self.param("scale", ones, shape, jnp.float32)
        bias = self.param("bias", zeros, shape, jnp.float32)
        running_mean = self.variable(
            "batch_stats", "mean", jnp.zeros, shape, jnp.float32
        )
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        x, scale, bias, mean, var = promote_dtype(
            x, scale, bias, running_mean.value, running_var.value
        )
        if self.is_mutable_collection("batch_stats"):
            mean = x.mean((0, 1, 2))
            var = jnp.maximum(jnp.square(x).mean((0, 1, 2)) - mean**2, 0)
            if not self.is_initializing():
                for running, new in ((running_mean, mean), (running_var, var)):
                    old = running.value
                    running.value = 0.95 * old + 0.05 * new.astype(old.dtype)
        gain = scale * jax.lax.rsqrt(var + 1e-5)
        per_channel = (1, 1, 1, -1)
        return x * gain.reshape(per_channel) + (bias - mean * gain).reshape(per_channel)


class Conv(nn.Module):
    """A convolution, its kernel a direction and a length for each feature.

    Attributes:
      features: of the output.
      size: rows and columns of the kernel, odd.
      stride: between pixels of the output.
      use_bias: whether one is added.
      compute_dtype: of the operands, see `jebm.products`.
    """

    features: int
    size: int
    stride: int = 1
    use_bias: bool = True
    compute_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, features]."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        x, kernel = promote_dtype(x, _normalised(self, shape))
        y = conv(x, kernel, self.stride, self.compute_dtype)
        return _add_bias(self, y) if self.use_bias else y


class PlainConv(nn.Module):
    """A convolution without length and bias, for a norm follows.

    Attributes:
      features: of the output.
      size: rows and columns of the kernel, odd.
      depthwise: whether each feature sees itself alone; then it is of float32.
      compute_dtype: of the operands, see `jebm.products`.
    """

    features: int
    size: int
    depthwise: bool = False
    compute_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, features]."""
        inputs = 1 if self.depthwise else x.shape[-1]
        shape = (self.size, self.size, inputs, self.features)
        kernel = self.param("kernel", _kernel_init, shape, jnp.float32)
        _sow(self, kernel)
        x, kernel = promote_dtype(x, kernel)
        if self.depthwise:
            return depthwise_conv(x, kernel)
        return conv(x, kernel, compute_dtype=self.compute_dtype)


class Flow(nn.Module):
    """Shifts each unit by a network of those before it, which keeps the volume.

    Every other shift has the opposite order of pixels.
    """

    channels: int
    num_shifts: int
    compute_dtype: str

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """Maps [B, H, W, channels] to the same."""
        hidden = 6 * self.channels
        for n in range(self.num_shifts):
            causal = functools.partial(
                CausalConv, mirrored=bool(n % 2), compute_dtype=self.compute_dtype
            )
            y = causal(hidden, 3, strict=True)(z)
            y = causal(hidden, 5, depthwise=True)(nn.elu(y))
            head = causal(self.channels, 1, use_bias=True, length=0.1)
            z = z - head(nn.elu(nn.elu(y)))
        return z


class CausalConv(nn.Module):
    """A convolution that looks back, see `causal_mask`.

    Attributes:
      features: of the output.
      size: rows and columns of the kernel, odd.
      mirrored: whether pixels are taken from the last to the first.
      strict: whether each unit is hidden from itself.
      depthwise: whether each feature sees itself alone.
      use_bias: whether one is added.
      length: of the kernels, at the start of training, relative to their own.
      compute_dtype: of the operands, see `jebm.products`; not where depthwise.
    """

    features: int
    size: int
    mirrored: bool
    strict: bool = False
    depthwise: bool = False
    use_bias: bool = False
    length: float = 1.0
    compute_dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H, W, features]."""
        inputs = 1 if self.depthwise else x.shape[-1]
        mask = causal_mask(self.size, inputs, self.features, self.strict, self.mirrored)
        kernel = _normalised(self, mask.shape, mask, self.length)
        x, kernel = promote_dtype(x, kernel)
        if self.depthwise:
            y = depthwise_conv(x, kernel)
        else:
            y = conv(x, kernel, compute_dtype=self.compute_dtype)
        return _add_bias(self, y) if self.use_bias else y


def causal_mask(
    size: int, inputs: int, features: int, strict: bool, mirrored: bool
) -> np.ndarray:
    """Marks by 1 the taps of a kernel [size, size, inputs, features] that look back.

    Units are ordered by pixel, row by row, and within one by channel; more inputs or
    features than channels come in blocks. At its own pixel a tap looks back to
    channels before its own and, unless `strict`, to its own. `mirrored` turns the order
    of the pixels, and of them alone, around.

    Example:
      >>> causal_mask(3, 1, 1, strict=True, mirrored=False)[:, :, 0, 0]
      array([[1., 1., 1.],
             [1., 0., 0.],
             [0., 0., 0.]])
    """
    tap = np.arange(size**2).reshape(size, size)
    tap = (tap[::-1, ::-1] if mirrored else tap)[:, :, None, None]
    channels = min(inputs, features)
    source = (np.arange(inputs) * channels // inputs)[:, None]
    target = np.arange(features) * channels // features
    centre = source < target if strict else source <= target
    own = size**2 // 2
    return ((tap < own) | ((tap == own) & centre)).astype(float)


# That of the published networks: the variance is a third of the usual.
_kernel_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _normalised(module, shape, mask=None, length=1.0):
    """Returns the module's kernel: directions of `kernel` times exp(log_length)."""
    kernel = module.param("kernel", _kernel_init, shape, jnp.float32)
    if mask is not None:
        kernel = kernel * mask.astype(kernel.dtype)
    norm = jnp.sqrt((kernel**2).sum(axis=(0, 1, 2)))
    log_length = module.param("log_length", lambda _: jnp.log(length * (norm + 0.01)))
    kernel = kernel * (jnp.exp(log_length) / (norm + 1e-5)).reshape(1, 1, 1, -1)
    _sow(module, kernel)
    return kernel


def _sow(module, kernel):
    if not module.is_initializing():
        # The prior's, which the posterior reads too, counts once.
        module.sow("kernels", "kernel", kernel, reduce_fn=_latest, init_fn=tuple)


def _latest(_, new):
    return new


def _add_bias(module, y):
    zeros = nn.initializers.zeros
    bias = module.param("bias", zeros, y.shape[-1:], jnp.float32)
    y, bias = promote_dtype(y, bias)
    return y + bias.reshape(1, 1, 1, -1)


def _check_fields(backbone):
    """Raises a ValueError naming the attribute that cannot be."""
    check_compute_dtype(backbone.compute_dtype)
    least = {
        "latent_channels": 1,
        "width": 1,
        "encoder_width": 1,
        "image_halvings": 0,
        "preprocess_cells": 1,
        "postprocess_cells": 1,
        "encoder_cells": 1,
        "decoder_cells": 1,
        "num_flows": 0,
        "padding": 0,
        "bits": 1,
    }
    for name, low in least.items():
        value = getattr(backbone, name)
        if not isinstance(value, int) or value < low:
            raise ValueError(
                f"{name} must be an integer of at least {low}, got {value!r}"
            )
    groups = backbone.groups
    if not isinstance(groups, tuple) or not all(
        isinstance(n, int) and n > 0 for n in groups or (0,)
    ):
        raise ValueError(
            f"groups must hold a positive number for each scale, got {groups!r}"
        )
    if backbone.bits > 8:
        raise ValueError(f"bits must be at most 8, got {backbone.bits}")
    if backbone.output_shape is None:
        return
    size = [n + 2 * backbone.padding for n in backbone.output_shape[:2]]
    halvings = backbone.image_halvings + len(groups) - 1
    if any(n % 2**halvings for n in size):
        raise ValueError(
            f"{len(groups)} scales of groups and image_halvings="
            f"{backbone.image_halvings} halve the padded image {halvings} times, but "
            f"{size[0]}x{size[1]} is not divisible by {2**halvings}"
        )
