"""Log-densities of the joint EBM prior, in nats, up to log Z.

    z-space     log p(z)   = log p_beta(z) - E(z) - log Z
    eps-space   log p(eps) = log N(eps; 0, I) - E(T(eps)) - log Z,     z = T(eps)

The two are one law with the same Z: T is invertible, and N(eps; 0, I) is p_beta(z)
times its Jacobian. With an image x both gain log p(x | z). Another law is that of

    eps_no_jacobian        log p_beta(T(eps)) - E(T(eps))

which leaves the Jacobian out, as the paper's code for two stages does: it favours
eps at which the sigma_i are small. And the law of z given x, seen from an encoder:

    encoder  log N(xi; 0, I) - log q(z | x) + log p(x | z) + log p_beta(z) - E(z)

of the noise xi that the encoder transports to z, exact as the first two are. The closer
q is to the posterior, the closer this is to N(0, I).
(arXiv 2306.06323)
"""

from typing import Any

import flax.linen as nn
import jax

from jebm import checks, types
from jebm.hierarchy import (
    Latents,
    given,
    infer,
    keep_above,
    log_prior,
    log_standard_normal,
    top_down,
    transport,
)
from jebm.langevin import LogDensity
from jebm.model import Model, Params, energy


def logdensity(
    model: Model,
    params: Params,
    position: Latents,
    *,
    space: str,
    x: jax.Array | None = None,
    temperature: jax.typing.ArrayLike = 1.0,
    above: Latents = (),
    tilt: jax.typing.ArrayLike = 1.0,
    likelihood_weight: jax.typing.ArrayLike = 1.0,
) -> jax.Array:
    """Computes the equations above for a batch of positions; `x` [B, H, W, C] or None.

    The decoder is not called where `x` is None. `temperature` scales every sigma_i
    of the hierarchy. With z_{>k} given as `above`, the position is of the k layers
    below and the density is theirs, up to what depends on z_{>k} alone. `tilt`
    multiplies E, and `likelihood_weight` log p(x|z). Space "encoder" takes an `x` and
    none of these. Returns [B].
    """
    if space == "encoder":
        return _encoder_logdensity(model, params, position, x)
    batch = position[0].shape[0]
    pick = given(position) if space == "z" else transport(position)
    pick = keep_above(above, len(position), pick)

    def backbone_terms(backbone):
        latents, priors, state = top_down(
            backbone, batch, pick, temperature, model.remat
        )
        output = None if x is None else backbone.decode(state)
        return latents, priors, state, output

    apply = nn.apply(backbone_terms, model.backbone)
    latents, priors, state, output = apply(params.backbone)
    if space == "eps":
        value = log_standard_normal(position)
    else:
        value = log_prior(latents, priors)
    value = value - tilt * energy(model, params, latents, state)
    if x is not None:
        value = value + likelihood_weight * model.likelihood.log_prob(output, x)
    return value


def _encoder_logdensity(model, params, noise, x):
    def backbone_terms(backbone):
        latents, log_q, priors, state = infer(backbone, x, noise)
        log_ratio = log_prior(latents, priors) - sum(log_q)
        return latents, state, log_ratio, backbone.decode(state)

    apply = nn.apply(backbone_terms, model.backbone)
    latents, state, log_ratio, output = apply(params.backbone)
    value = log_standard_normal(noise) + log_ratio
    value = value - energy(model, params, latents, state)
    return value + model.likelihood.log_prob(output, x)


def one_chain(
    model: Model,
    params: Params,
    space: str,
    x: jax.Array | None,
    temperature: Any,
    above: Latents = (),
    tilt: Any = 1.0,
    likelihood_weight: Any = 1.0,
) -> LogDensity:
    """Returns the log-density of one position (no batch axis), for a Langevin chain."""
    x, above = jax.tree.map(lambda leaf: leaf[None], (x, above))

    def logdensity_fn(position):
        value = logdensity(
            model,
            params,
            jax.tree.map(lambda z: z[None], position),
            space=space,
            x=x,
            temperature=temperature,
            above=above,
            tilt=tilt,
            likelihood_weight=likelihood_weight,
        )
        return value[0]

    return logdensity_fn


@jax.jit
def _z_logdensity(model, params, latents, x):
    return logdensity(model, params, latents, space="z", x=x)


def prior_logdensity(
    model: Model, params: Params, latents: types.Latents
) -> types.PerExample:
    """Computes log p_beta(z) - E(z), the joint EBM prior up to log Z.

    (arXiv 2306.06323)

    Args:
      model: the model.
      params: its parameters.
      latents: z, a tuple bottom to top of [N, *shape_i].

    Returns:
      [N], nats.

    Raises:
      ValueError: if `params` or `latents` do not fit the model.

    Example:
      >>> import jax, jebm
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> params = jebm.init(jax.random.key(0), model)
      >>> samples = jebm.sample(jax.random.key(1), model, params, 3)
      >>> prior_logdensity(model, params, samples.latents).shape
      (3,)
    """
    checks.params(model, params)
    checks.latents(model, latents)
    return _z_logdensity(model, params, tuple(latents), None)


def joint_logdensity(
    model: Model, params: Params, x: types.Images, latents: types.Latents
) -> types.PerExample:
    """Computes log p(x | z) + log p_beta(z) - E(z), up to log Z.

    Args:
      model: the model.
      params: its parameters.
      x: images [N, H, W, C] in [0, 1].
      latents: z, a tuple bottom to top of [N, *shape_i].

    Returns:
      [N], nats.

    Raises:
      ValueError: if `params`, `x` or `latents` do not fit the model, or if `x` leaves
        [0, 1] or is not finite.

    Example:
      >>> import jax, jebm
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> params = jebm.init(jax.random.key(0), model)
      >>> samples = jebm.sample(jax.random.key(1), model, params, 3)
      >>> joint_logdensity(model, params, samples.x, samples.latents).shape
      (3,)
    """
    checks.params(model, params)
    checks.images(model, x)
    checks.latents(model, latents, num=x.shape[0])
    return _z_logdensity(model, params, tuple(latents), x)
