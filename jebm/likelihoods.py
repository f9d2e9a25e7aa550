"""Likelihoods p(x | z) of images in [0, 1].

`log_prob` is normalised, in nats, and has shape [B]. Each likelihood owns the map from
the decoder's unconstrained output to the image scale [0, 1], so a backbone need not
know which one it feeds.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp

from jebm.distributions import Normal, sum_event
from jebm.networks import soft_clamp


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """p(x | z) = N(x; sigmoid(output), scale), a density of x on the scale [0, 1].

    The paper's sigma_x = 0.3 on [-1, 1] is `scale = 0.15` here.

    Example:
      >>> Gaussian(scale=0.15).mean(jnp.zeros((1, 1, 1, 1))).item()
      0.5
    """

    scale: float = 0.15
    discrete = False  # whether `log_prob` is of images of finitely many colours

    def __post_init__(self):
        if not self.scale > 0:
            raise ValueError(f"likelihood scale must be positive, got {self.scale}")

    def num_outputs(self, channels: int) -> int:
        """Counts the channels of the decoder's output for an image of `channels`."""
        return channels

    def mean(self, output: jax.Array) -> jax.Array:
        """Computes the expected image in [0, 1], from decoder output [B, H, W, C]."""
        return jax.nn.sigmoid(output)

    def log_prob(self, output: jax.Array, x: jax.Array) -> jax.Array:
        """Computes log p(x | z) in nats, [B]; `output` and `x` are [B, H, W, C]."""
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

    discrete = True

    def num_outputs(self, channels: int) -> int:
        """Counts the channels of the decoder's output for an image of `channels`."""
        return channels

    def mean(self, output: jax.Array) -> jax.Array:
        """Computes the expected image in [0, 1], from logits [B, H, W, C]."""
        return jax.nn.sigmoid(output)

    def log_prob(self, output: jax.Array, x: jax.Array) -> jax.Array:
        """Computes log p(x | z) in nats, [B].

        `output` (logits) and `x` are [B, H, W, C].
        """
        return sum_event(
            x * jax.nn.log_sigmoid(output) + (1 - x) * jax.nn.log_sigmoid(-output)
        )


@dataclasses.dataclass(frozen=True)
class LearnedGaussian:
    """p(x | z) = N(2 x - 1; mu, sigma), both of the decoder: NVAE's normal decoder.

    A density of x on the scale [0, 1]. mu and log sigma are softly clamped to (-5, 5),
    and 0.01 is added to sigma. (arXiv 2007.03898; the floor: arXiv 2010.00654)

    Attributes:
      min_log_scale: log sigma is never below it; None for no floor.

    Example:
      >>> LearnedGaussian().mean(jnp.zeros((1, 1, 1, 2))).item()
      0.5
    """

    min_log_scale: float | None = None
    discrete = False

    def num_outputs(self, channels: int) -> int:
        """Counts the channels of the decoder's output for an image of `channels`."""
        return 2 * channels

    def mean(self, output: jax.Array) -> jax.Array:
        """Computes the mean of x, within [0, 1], from decoder output [B, H, W, 2 C]."""
        return jnp.clip((self._normal(output).loc + 1) / 2, 0, 1)

    def log_prob(self, output: jax.Array, x: jax.Array) -> jax.Array:
        """Computes log p(x | z) in nats, [B].

        `output` is [B, H, W, 2 C] and `x` is [B, H, W, C].
        """
        units = math.prod(x.shape[1:])
        return self._normal(output).log_prob(2 * x - 1) + units * math.log(2)

    def _normal(self, output):
        loc, log_scale = (soft_clamp(o, 5.0) for o in jnp.split(output, 2, axis=-1))
        if self.min_log_scale is not None:
            log_scale = jnp.maximum(log_scale, self.min_log_scale)
        return Normal(loc, jnp.exp(log_scale) + 0.01)


@dataclasses.dataclass(frozen=True)
class LogisticMixture:
    """p(x | z): each pixel a mixture of discretised logistics, colours in a chain.

        c_j = 2 x_j - 1 ~ sum_m pi_m logistic(mu_jm + sum_{i<j} a_jim c_i, s_jm)

    over the bins of 2^bits colours; the outermost bins reach to infinity. A probability
    of the discrete x: with 8 bits x has to be one of the colours v / 255, with fewer it
    is quantised first. (PixelCNN++, arXiv 1701.05517; NVAE, arXiv 2007.03898)

    Decoder output holds, in this order, the M logits of pi; of each channel j the means
    [M], and log s [M], which is at least -7; of each pair i < j, (0, 1), (0, 2),
    (1, 2), what tanh makes the a [M].

    Attributes:
      num_mixtures: M.
      bits: of each colour.

    Example:
      >>> likelihood = LogisticMixture(num_mixtures=2)
      >>> likelihood.num_outputs(3)
      20
      >>> likelihood.mean(jnp.zeros((1, 1, 1, 20)))[0, 0, 0]
      Array([0.5, 0.5, 0.5], dtype=float32)
    """

    num_mixtures: int = 10
    bits: int = 8
    discrete = True

    def __post_init__(self):
        if self.num_mixtures < 1:
            raise ValueError(
                f"num_mixtures must be at least 1, got {self.num_mixtures}"
            )
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits must lie in [1, 8], got {self.bits}")

    def num_outputs(self, channels: int) -> int:
        """Counts the channels of the decoder's output for an image of `channels`."""
        return self.num_mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)

    def mean(self, output: jax.Array) -> jax.Array:
        """Computes means of mixture and chain in [0, 1], each colour's in range."""
        logits, means, _, coefficients = self._split(output)
        weights = jax.nn.softmax(logits, axis=-1)
        colours: list[jax.Array] = []
        for j, mean in enumerate(means):
            colour = (weights * mean).sum(-1)
            for i, before in enumerate(colours):
                colour += (weights * coefficients[i, j]).sum(-1) * before
            colours.append(jnp.clip(colour, -1, 1))
        return (jnp.stack(colours, axis=-1) + 1) / 2

    def log_prob(self, output: jax.Array, x: jax.Array) -> jax.Array:
        """Computes log p(x | z) in nats, [B], of `x` [B, H, W, C]."""
        logits, means, log_scales, coefficients = self._split(output)
        colours = (2 * reduce_bit_depth(x, self.bits) - 1)[..., None]  # [B, H, W, C, 1]
        log_prob = jax.nn.log_softmax(logits, axis=-1)
        for j, (mean, log_scale) in enumerate(zip(means, log_scales, strict=True)):
            for i in range(j):
                mean = mean + coefficients[i, j] * colours[..., i, :]
            log_prob += self._log_bin(colours[..., j, :], mean, log_scale)
        return sum_event(jax.nn.logsumexp(log_prob, axis=-1))

    def _log_bin(self, colour, mean, log_scale):
        """Computes the log-probability of `colour`'s bin under one logistic."""
        width = 1 / (2**self.bits - 1)
        upper, lower = (
            (colour + side - mean) * jnp.exp(-log_scale) for side in (width, -width)
        )
        # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)), exactly.
        difference = upper - lower
        wide = difference > 1e-5
        log_difference = jnp.where(
            wide,
            jnp.log(-jnp.expm1(-jnp.where(wide, difference, 1))),
            math.log(2 * width) - log_scale,
        )
        log_inner = (
            jax.nn.log_sigmoid(upper) + jax.nn.log_sigmoid(-lower) + log_difference
        )
        log_first, log_last = jax.nn.log_sigmoid(upper), jax.nn.log_sigmoid(-lower)
        ends = [colour < -1 + width, colour > 1 - width]
        return jnp.select(ends, [log_first, log_last], log_inner)

    def _split(self, output):
        """Returns logits of pi, and channels' means, log s and a, each [B, H, W, M]."""
        parts = jnp.split(output, output.shape[-1] // self.num_mixtures, axis=-1)
        logits, *parts = parts
        channels = next(
            c for c in itertools.count(1) if self.num_outputs(c) >= output.shape[-1]
        )
        means, log_scales = parts[:channels], parts[channels : 2 * channels]
        log_scales = [jnp.maximum(s, -7.0) for s in log_scales]
        pairs = [(i, j) for j in range(channels) for i in range(j)]
        coefficients = map(jnp.tanh, parts[2 * channels :])
        return logits, means, log_scales, dict(zip(pairs, coefficients, strict=True))


def reduce_bit_depth(x: jax.Array, bits: int) -> jax.Array:
    """Drops the lowest 8 - bits bits of 8-bit colours, in [0, 1] before and after.

    Example:
      >>> reduce_bit_depth(jnp.arange(256) / 255, 1).sum().item()
      128.0
    """
    if bits == 8:
        return x
    return jnp.floor(jnp.round(x * 255) / 2 ** (8 - bits)) / (2**bits - 1)
