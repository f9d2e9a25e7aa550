"""The Gaussian hierarchy p_beta(z) and the one top-down pass through it.

    p_beta(z) = p(z_L) prod_{i<L} p_beta(z_i | z_{>i}),      z_i = mu_i + sigma_i eps_i

Latents are a tuple ordered bottom (next to the data) to top: `latents[k:]` is z_{>k}.
A backbone is a Linen module with the attribute `latent_shapes`, bottom to top, and

    start(batch) -> state                    any pytree
    prior(i, state) -> Normal                loc, scale [B, *latent_shapes[i]]
    merge(i, state, z_i) -> state
    decode(state) -> likelihood parameters   [B, H, W, channels], unconstrained

and, if its attribute `has_encoder` is true,

    encode(x) -> features
    posterior(i, state, features, prior_i, noise_i) -> (z_i, log q_i [B])

with `encoder_modules`, the names of the top-level modules that these alone use. z_i is
a map of standard normal noise_i, of its own shape, and log q_i the density at z_i that
this gives it: noise is to q(z | x) what eps is to p_beta(z).

Here i is the tuple index, from L - 1 (top) down to 0; cost is linear in L. Functions
of this module take a bound backbone, as inside `nn.apply`.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jebm.distributions import Normal

Latents = tuple[jax.Array, ...]
Pick = Callable[[int, Any, Normal], jax.Array]


def top_down(
    backbone: Any,
    batch: int,
    pick: Pick,
    temperature: jax.typing.ArrayLike = 1.0,
    remat: bool = False,
) -> tuple[Latents, tuple[Normal, ...], Any]:
    """Goes from the top layer to the bottom, letting `pick` choose each z_i.

    Args:
      backbone: a bound backbone.
      batch: number of examples B.
      pick: (i, state, prior_i) -> z_i [B, *latent_shapes[i]]: `transport`, `given`,
        or a caller's own.
      temperature: scales every sigma_i (NVAE's sampling temperature).
      remat: where a gradient is taken, computes what is inside a layer once more on the
        way back, instead of keeping it; `pick` must then be a pure function.

    Returns:
      latents and priors, tuples ordered bottom to top, and the state to decode from.
    """

    def layer(backbone, i, state):
        prior = backbone.prior(i, state)
        prior = Normal(prior.loc, temperature * prior.scale)
        z = pick(i, state, prior)
        return z, prior, backbone.merge(i, state, z)

    if remat:
        layer = nn.remat(layer, static_argnums=(1,))
    state = backbone.start(batch)
    latents, priors = [], []
    for i in reversed(range(len(backbone.latent_shapes))):
        z, prior, state = layer(backbone, i, state)
        latents.append(z)
        priors.append(prior)
    return tuple(latents[::-1]), tuple(priors[::-1]), state


def transport(eps: Latents) -> Pick:
    """Picks z_i = mu_i + sigma_i eps_i, the map T from noise to latents."""
    return lambda i, state, prior: prior.transport(eps[i])


def given(latents: Latents) -> Pick:
    """Picks the z_i of `latents`."""
    return lambda i, state, prior: latents[i]


def keep_above(above: Latents, k: int, pick: Pick) -> Pick:
    """Picks z_{>k} of `above`, and the k layers below by `pick`."""
    return lambda i, state, prior: above[i - k] if i >= k else pick(i, state, prior)


def inverse_transport(latents: Latents, priors: tuple[Normal, ...]) -> Latents:
    """Computes the eps of `latents`, eps_i = (z_i - mu_i) / sigma_i."""
    return tuple(
        (z - prior.loc) / prior.scale for z, prior in zip(latents, priors, strict=True)
    )


def infer(
    backbone: Any, x: jax.Array, noise: Latents
) -> tuple[Latents, tuple[jax.Array, ...], tuple[Normal, ...], Any]:
    """Transports standard normal noise to z ~ q(z | x), top down, by the encoder.

    Args:
      backbone: a bound backbone with an encoder.
      x: images [B, H, W, C] in [0, 1].
      noise: bottom to top, each [B, *latent_shapes[i]].

    Returns:
      latents, log q(z_i | z_{>i}, x) of each layer in nats [B], bottom to top, and the
      priors and the state of `top_down`.
    """
    features = backbone.encode(x)
    log_q = []

    def pick(i, state, prior):
        z, log_q_i = backbone.posterior(i, state, features, prior, noise[i])
        log_q.append(log_q_i)
        return z

    latents, priors, state = top_down(backbone, x.shape[0], pick)
    return latents, tuple(log_q[::-1]), priors, state


def normal_posterior(
    backbone: Any, i: int, state: Any, features: Any, prior: Normal
) -> Normal:
    """Returns q(z_i | z_{>i}, x) of a bound backbone, if it is normal: see below."""
    zeros = jnp.zeros_like(prior.loc)
    loc, _ = backbone.posterior(i, state, features, prior, zeros)
    end, _ = backbone.posterior(i, state, features, prior, zeros + 1)
    return Normal(loc, end - loc)


def has_normal_posterior(backbone: Any) -> bool:
    """Says whether q of a layer shifts and scales its noise, given the layers above.

    It does unless the backbone's attribute `is_posterior_normal` is False.
    """
    return has_encoder(backbone) and getattr(backbone, "is_posterior_normal", True)


def has_encoder(backbone: Any) -> bool:
    """Says whether the backbone can `infer`."""
    return getattr(backbone, "has_encoder", False)


def log_prior(latents: Latents, priors: tuple[Normal, ...]) -> jax.Array:
    """Computes log p_beta(z) in nats, [B], from the priors of `top_down`."""
    return sum(p.log_prob(z) for z, p in zip(latents, priors, strict=True))


def log_standard_normal(eps: Latents) -> jax.Array:
    """Computes log N(eps; 0, I) in nats, [B], summed over all layers."""
    return sum(Normal(jnp.zeros_like(e), jnp.ones_like(e)).log_prob(e) for e in eps)
