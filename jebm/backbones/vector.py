"""Vector latents in any number of layers, with an MLP or deconvolution decoder.

    z_L ~ N(0, I),   z_i ~ N(mu_i(c_i), sigma_i(c_i)),   output = decoder(c_0)

where the context c_i is the next layer z_{i+1} (`conditioning="next"`, the Markov
hierarchy of arXiv 2306.06323) or all layers above, z_{>i} (`conditioning="above"`).
The data is layer 0: the decoder reads its context by the same rule.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jebm.distributions import Normal
from jebm.names import unknown_name_message
from jebm.networks import (
    ACTIVATIONS,
    MLP,
    Deconv,
    check_activation,
    check_stages,
    check_widths,
    required_shape,
    soft_clamp,
)
from jebm.products import check_compute_dtype

CONDITIONINGS = ("next", "above")
DECODERS = ("mlp", "deconv")


class Vector(nn.Module):
    """Generator with vector latents.

    Attributes:
      output_shape: (H, W, channels) of the decoder's output; None for what the model
        asks for.
      latent_dims: D_i of each layer, bottom to top.
      conditioning: "next" or "above", see the module's docstring.
      prior_widths: hidden widths of each network for (mu_i, log sigma_i).
      decoder_type: "mlp", or "deconv" for transposed convolutions.
      decoder_widths: hidden widths of an MLP; channels of a deconvolution's stages,
        coarse to fine, each stage after the first at twice the resolution.
      encoder_widths: hidden widths of the inference network's trunk, from which and
        from the layers above each layer's q is linear; None for no encoder.
      activation: of all networks.
      log_scale_bound: log sigma_i is softly clamped to plus or minus this. The floor
        bounds the curvature of log p_beta, which limits a chain's step size.
      compute_dtype: of the operands of products, see `jebm.products`.

    Example:
      >>> from jebm.hierarchy import top_down, transport
      >>> backbone = Vector(output_shape=(8, 8, 1), latent_dims=(4, 2))
      >>> eps = (jnp.zeros((3, 4)), jnp.zeros((3, 2)))
      >>> def generate(backbone):
      ...     latents, priors, state = top_down(backbone, 3, transport(eps))
      ...     return backbone.decode(state)
      >>> output, params = nn.init_with_output(generate, backbone)(jax.random.key(0))
      >>> output.shape
      (3, 8, 8, 1)
    """

    output_shape: tuple[int, int, int] | None = None
    latent_dims: tuple[int, ...] = (16, 8)
    conditioning: str = "next"
    prior_widths: tuple[int, ...] = (200, 200)
    decoder_type: str = "mlp"
    decoder_widths: tuple[int, ...] = (512, 512)
    encoder_widths: tuple[int, ...] | None = None
    activation: str = "gelu"
    log_scale_bound: float = 3.0
    compute_dtype: str = "float32"

    def __post_init__(self):
        if self.conditioning not in CONDITIONINGS:
            raise ValueError(
                unknown_name_message("conditioning", self.conditioning, CONDITIONINGS)
            )
        if not self.latent_dims or not all(
            isinstance(dim, int) and dim > 0 for dim in self.latent_dims
        ):
            raise ValueError(
                f"latent_dims must be positive integers, got {self.latent_dims}"
            )
        if not self.log_scale_bound > 0:
            raise ValueError(
                f"log_scale_bound must be positive, got {self.log_scale_bound}"
            )
        if self.decoder_type not in DECODERS:
            raise ValueError(
                unknown_name_message("decoder_type", self.decoder_type, DECODERS)
            )
        check_widths("prior_widths", self.prior_widths)
        check_widths("decoder_widths", self.decoder_widths)
        if self.decoder_type == "deconv" and self.output_shape is not None:
            check_stages(self.decoder_widths, self.output_shape)
        if self.encoder_widths is not None and not self.encoder_widths:
            raise ValueError("encoder_widths must be None or hold a width, got ()")
        if self.encoder_widths is not None:
            check_widths("encoder_widths", self.encoder_widths)
        check_activation(self.activation)
        check_compute_dtype(self.compute_dtype)
        super().__post_init__()

    @property
    def latent_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Returns the shape of each layer's latent, bottom to top."""
        return tuple((dim,) for dim in self.latent_dims)

    @property
    def has_encoder(self) -> bool:
        """Says whether `encode` and `posterior` may be called."""
        return self.encoder_widths is not None

    @property
    def encoder_modules(self) -> tuple[str, ...]:
        """Names the top-level modules that inference alone uses."""
        if not self.has_encoder:
            return ()
        layers = range(len(self.latent_dims))
        return ("encoder", *(f"posteriors_{i}" for i in layers))

    def setup(self):
        """Declares priors below the top layer, the decoder, and the encoder if any."""
        shared = {"activation": self.activation, "compute_dtype": self.compute_dtype}
        self.priors = [
            MLP(self.prior_widths, 2 * dim, **shared) for dim in self.latent_dims[:-1]
        ]
        shape = required_shape(self.output_shape)
        if self.decoder_type == "deconv":
            self.decoder = Deconv(self.decoder_widths, shape, **shared)
        else:
            self.decoder = MLP(self.decoder_widths, math.prod(shape), **shared)

        if self.has_encoder:
            *widths, features = self.encoder_widths
            self.encoder = MLP(tuple(widths), features, **shared)
            self.posteriors = [MLP((), 2 * dim, **shared) for dim in self.latent_dims]

    def start(self, batch: int) -> jax.Array:
        """Returns the empty context above the top layer, [B, 0]."""
        return jnp.full((batch, 0), 0.0)  # weakly typed: takes the dtype of the latents

    def prior(self, i: int, state: jax.Array) -> Normal:
        """Returns p_beta(z_i | z_{>i})."""
        if i == len(self.latent_dims) - 1:
            shape = (state.shape[0], self.latent_dims[i])
            return Normal(jnp.full(shape, 0.0), jnp.full(shape, 1.0))
        return self._normal(self.priors[i](state))

    def merge(self, i: int, state: jax.Array, z: jax.Array) -> jax.Array:
        """Returns the context of the layer below."""
        del i
        if self.conditioning == "next":
            return z
        return jnp.concatenate([z, state], axis=-1)

    def decode(self, state: jax.Array) -> jax.Array:
        """Computes likelihood parameters, [B, *output_shape]."""
        return self.decoder(state).reshape(-1, *required_shape(self.output_shape))

    def encode(self, x: jax.Array) -> jax.Array:
        """Encodes images [B, H, W, C] as features [B, D], read by every layer's q."""
        return ACTIVATIONS[self.activation](self.encoder(x))

    def posterior(
        self,
        i: int,
        state: jax.Array,
        features: jax.Array,
        prior: Normal,
        noise: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Transports noise [B, D_i] to z_i of q(z_i | z_{>i}, x).

        Returns z_i [B, D_i], differentiable in q's parameters, and log q in nats, [B].
        """
        del prior  # q shares nothing with it but the context
        q = self._normal(self.posteriors[i](jnp.concatenate([features, state], -1)))
        z = q.transport(noise)
        return z, q.log_prob(z)

    def _normal(self, output):
        loc, log_scale = jnp.split(output, 2, axis=-1)
        return Normal(loc, jnp.exp(soft_clamp(log_scale, self.log_scale_bound)))
