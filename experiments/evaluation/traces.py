"""Values along chains."""

import jax

import jebm
from jebm.objectives import posterior_terms


@jax.jit
def energies_along(model: jebm.Model, params: jebm.Params, traced) -> jax.Array:
    """Computes E(z), [T, B], of latents [T, B, *shape_i]: one time after the other."""
    return jax.lax.map(lambda z: jebm.energy(model, params, z), traced)


@jax.jit
def log_likelihoods_along(
    model: jebm.Model, params: jebm.Params, x: jax.Array, traced
) -> jax.Array:
    """Computes log p(x | z), [T, B] in nats, of images x [B, H, W, C] and latents."""
    return jax.lax.map(
        lambda z: posterior_terms(model, params, x, z).log_likelihood, traced
    )
