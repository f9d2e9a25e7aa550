"""A ladder: layers of vectors and of maps around one top-down state.

    h_L = a learned constant,     z_i ~ N(mu_i(h_i), sigma_i(h_i)),     z_L ~ N(0, I)
    h_{i-1} = h_i + g_i(h_i, z_i),   carried to the resolution of the layer below
    q(z_i | z_{>i}, x) = N(mu_i + sigma_i dmu_i, sigma_i dsigma_i),  d of (h_i, x)

The state is added to, never replaced: what an upper layer has written reaches the
decoder past all layers below, so that these need not repeat it. The posterior reads the
same state and is told as a departure from the prior, after a bottom-up pass over the
image (the ladder VAE, arXiv 1602.02282; the residual form is that of arXiv 2007.03898).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from jebm.convolution import ConvTranspose, stand_in
from jebm.distributions import Normal
from jebm.networks import (
    ACTIVATIONS,
    check_activation,
    required_shape,
    soft_clamp,
)
from jebm.products import check_compute_dtype, dense

Shape = tuple[int, ...]


class Ladder(nn.Module):
    """Generator with latents at several resolutions, and its two-way inference.

    Attributes:
      output_shape: (H, W, channels) of the decoder's output; None for what the model
        asks for.
      latent_shapes: bottom (next to the image) to top, of each layer (D,) or
        (H_i, W_i, D). Vectors lie above maps, and each map has the resolution of the
        one below it divided by a power of two; so has the lowest that of the image.
      width: features of the state; of each of its pixels where it is a map.
      encoder_widths: features of the bottom-up pass at each layer, bottom to top; None
        for no encoder.
      activation: of all networks.
      log_scale_bound: log sigma_i, and that of q relative to it, are softly clamped to
        plus or minus this.
      compute_dtype: of the operands of products, see `jebm.products`.

    Example:
      >>> from jebm.hierarchy import top_down, transport
      >>> backbone = Ladder((8, 8, 1), ((4, 4, 2), (3,)), width=6)
      >>> eps = (jnp.zeros((2, 4, 4, 2)), jnp.zeros((2, 3)))
      >>> def generate(backbone):
      ...     latents, priors, state = top_down(backbone, 2, transport(eps))
      ...     return backbone.decode(state)
      >>> output, params = nn.init_with_output(generate, backbone)(jax.random.key(0))
      >>> output.shape
      (2, 8, 8, 1)
    """

    output_shape: tuple[int, int, int] | None = None
    latent_shapes: tuple[Shape, ...] = ((8,), (8,), (8,))
    width: int = 256
    encoder_widths: tuple[int, ...] | None = None
    activation: str = "gelu"
    log_scale_bound: float = 3.0
    compute_dtype: str = "float32"

    def __post_init__(self):
        _check_shapes(self.latent_shapes, self.output_shape)
        if not isinstance(self.width, int) or self.width < 1:
            raise ValueError(f"width must be a positive integer, got {self.width!r}")
        widths = self.encoder_widths
        if widths is not None and (
            not isinstance(widths, tuple) or len(widths) != len(self.latent_shapes)
        ):
            raise ValueError(
                "encoder_widths must be None or hold one width per layer, got "
                f"{widths!r} for {len(self.latent_shapes)} layers"
            )
        if not self.log_scale_bound > 0:
            raise ValueError(
                f"log_scale_bound must be positive, got {self.log_scale_bound}"
            )
        check_activation(self.activation)
        check_compute_dtype(self.compute_dtype)
        super().__post_init__()

    @property
    def has_encoder(self) -> bool:
        """Says whether `encode` and `posterior` may be called."""
        return self.encoder_widths is not None

    @property
    def encoder_modules(self) -> tuple[str, ...]:
        """Names the top-level modules that inference alone uses."""
        if not self.has_encoder:
            return ()
        layers = range(len(self.latent_shapes))
        return tuple(
            f"{name}_{i}" for name in ("encoders", "posteriors") for i in layers
        )

    def setup(self):
        """Declares the state, what reads and writes it, and the encoder if any."""
        shapes = [(*shape[:-1], self.width) for shape in self.latent_shapes]
        heads = [2 * shape[-1] for shape in self.latent_shapes]
        settings = self.activation, self.compute_dtype
        self.top = self.param("top", nn.initializers.zeros, shapes[-1], jnp.float32)
        self.priors = [Head(features, *settings) for features in heads[:-1]]
        # Layer i writes, and the layer below, or the image, reads at its resolution.
        output_shape = required_shape(self.output_shape)
        below = [(*output_shape[:2], self.width), *shapes[:-1]]
        if len(shapes[0]) == 1:
            below[0] = shapes[0]  # an image from a vector is left to the decoder
        self.writers = [TopDownBlock(shape, *settings) for shape in below]
        if len(shapes[0]) == 1:
            self.decoder = Resize(output_shape, self.compute_dtype)
        else:
            self.decoder = Head(output_shape[-1], *settings)
        if self.has_encoder:
            self.encoders = [
                BottomUpBlock((*shape[:-1], width), *settings)
                for shape, width in zip(
                    self.latent_shapes, self.encoder_widths, strict=True
                )
            ]
            self.posteriors = [Head(features, *settings) for features in heads]

    def start(self, batch: int) -> jax.Array:
        """Returns the state that the top layer reads, [B, *shape, width]."""
        return jnp.broadcast_to(self.top, (batch, *self.top.shape))

    def prior(self, i: int, state: jax.Array) -> Normal:
        """Returns p_beta(z_i | z_{>i})."""
        if i == len(self.latent_shapes) - 1:
            shape = (state.shape[0], *self.latent_shapes[i])
            return Normal(jnp.full(shape, 0.0), jnp.full(shape, 1.0))
        return Normal(*self._loc_and_scale(self.priors[i](state)))

    def merge(self, i: int, state: jax.Array, z: jax.Array) -> jax.Array:
        """Writes z_i to the state, at the resolution of the layer below."""
        return self.writers[i](state, z)

    def decode(self, state: jax.Array) -> jax.Array:
        """Computes likelihood parameters, [B, *output_shape]."""
        if state.ndim == 2:
            state = ACTIVATIONS[self.activation](state)
        return self.decoder(state)

    def encode(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Encodes images [B, H, W, C] as features of each layer, bottom to top."""
        features = []
        for encoder in self.encoders:
            x = encoder(x)
            features.append(x)
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
        departure = self.posteriors[i](jnp.concatenate([state, features[i]], -1))
        loc, scale = self._loc_and_scale(departure)
        q = Normal(prior.loc + prior.scale * loc, prior.scale * scale)
        z = q.transport(noise)
        return z, q.log_prob(z)

    def _loc_and_scale(self, output):
        loc, log_scale = jnp.split(output, 2, axis=-1)
        return loc, jnp.exp(soft_clamp(log_scale, self.log_scale_bound))


class Mix(nn.Module):
    """A linear map of features: dense of a vector, 3 x 3 of a map."""

    features: int
    compute_dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, ..., C] to [B, ..., features]."""
        if x.ndim == 2:
            return dense(self.features, self.compute_dtype)(x)
        return ConvTranspose(self.features, 3, 1, self.compute_dtype)(x)


class Head(nn.Module):
    """A linear map after an activation."""

    features: int
    activation: str
    compute_dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, ..., C] to [B, ..., features]."""
        x = ACTIVATIONS[self.activation](x)
        return Mix(self.features, self.compute_dtype)(x)


class Resize(nn.Module):
    """A linear map to another resolution: flat to flat or map, map to finer map."""

    shape: Shape
    compute_dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, *other, C] to [B, *shape]; x itself where it has that shape."""
        if x.ndim == 2 and x.shape[1:] != self.shape:
            size = 1
            for n in self.shape:
                size *= n
            return dense(size, self.compute_dtype)(x).reshape(-1, *self.shape)
        while x.shape[1:-1] != self.shape[:-1]:
            x = ConvTranspose(self.shape[-1], 4, 2, self.compute_dtype)(x)
        return x


class TopDownBlock(nn.Module):
    """h + g(h, z), carried to `shape`."""

    shape: Shape
    activation: str
    compute_dtype: str

    @nn.compact
    def __call__(self, state: jax.Array, z: jax.Array) -> jax.Array:
        """Maps [B, ..., width] and [B, ..., D] to [B, *shape]."""
        width, dtype = state.shape[-1], self.compute_dtype
        hidden = Mix(width, dtype)(jnp.concatenate([state, z], axis=-1))
        state = state + Head(width, self.activation, dtype)(hidden)
        return Resize(self.shape, dtype)(state)


class BottomUpBlock(nn.Module):
    """One stage of the bottom-up pass, to features of `shape`."""

    shape: Shape
    activation: str
    compute_dtype: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, *finer, C] to [B, *shape]."""
        activation, dtype = ACTIVATIONS[self.activation], self.compute_dtype
        features = self.shape[-1]
        if len(self.shape) == 1:
            x = dense(features, dtype)(x.reshape(x.shape[0], -1))
            return activation(x + Head(features, self.activation, dtype)(x))
        halve = None  # XLA's own convolution
        if dtype != "float32":
            halve = functools.partial(stand_in, compute_dtype=dtype)
        while x.shape[1:-1] != self.shape[:-1]:
            conv = nn.Conv(features, (4, 4), strides=2, conv_general_dilated=halve)
            x = activation(conv(x))
        x = Mix(features, dtype)(x)
        return activation(x + Head(features, self.activation, dtype)(x))


def _check_shapes(latent_shapes, output_shape):
    """Raises a ValueError unless the layers can stand above each other."""
    for shape in latent_shapes or ((),):
        if len(shape) not in (1, 3) or not all(
            isinstance(n, int) and n > 0 for n in shape
        ):
            raise ValueError(
                "latent_shapes must hold (D,) or (H, W, D) of positive integers for "
                f"each layer, got {latent_shapes}"
            )
    below = output_shape
    for shape in latent_shapes:
        known = below is not None
        if (
            len(shape) == 3
            and known
            and not (len(below) == 3 and _halves(below, shape))
        ):
            raise ValueError(
                "each map of latent_shapes must have the resolution of what lies below "
                f"it divided by a power of two, got {shape} above {below}"
            )
        below = shape


def _halves(fine, coarse):
    ratios = {fine[0] / coarse[0], fine[1] / coarse[1]}
    return len(ratios) == 1 and ratios.pop() in [2**k for k in range(12)]
