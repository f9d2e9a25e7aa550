"""Values along chains."""

import jax

import jebm


@jax.jit
def energies_along(model: jebm.Model, params: jebm.Params, traced) -> jax.Array:
    """Computes E(z), [T, B], of latents [T, B, *shape_i]: one time after the other."""
    return jax.lax.map(lambda z: jebm.energy(model, params, z), traced)
