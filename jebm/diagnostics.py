"""Measures how well a Langevin chain can follow its log-density.

An uncorrected chain of step size s is stable only while

    s^2 / 4 * lambda_max(-Hessian of logdensity) < 1,

and samples the density it is given only where a Metropolis test would accept its steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jebm import langevin, mala
from jebm.chains import run_one, vmap_chains
from jebm.kernels import Chain
from jebm.langevin import LogDensity, PyTree
from jebm.model import Model, Params

_MALA_STEPS = 10


class ChainDiagnostics(NamedTuple):
    """Diagnostics of one chain per example, at its end."""

    acceptance_rate: jax.Array  # [B], probability that MALA accepts a step of this size
    stiffness: jax.Array  # [B], s^2 / 4 * lambda_max: unstable from 1 on


def chain_diagnostics(
    keys: jax.Array,
    model: Model,
    params: Params,
    chain: Chain,
    *,
    x: jax.Array | None = None,
) -> ChainDiagnostics:
    """Runs the chains of `run_chains` and examines them where they end.

    Args:
      keys: typed keys, [B].
      model: the model.
      params: its parameters.
      chain: steps, step size, space and start.
      x: images [B, H, W, C] in [0, 1] for the posterior's chain, None for the prior's.

    Returns:
      ChainDiagnostics: the acceptance rate averaged over ten MALA steps, and the
        stiffness.

    Example:
      >>> import jebm
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> params = jebm.init(jax.random.key(0), model)
      >>> keys = jax.random.split(jax.random.key(1), 3)
      >>> health = chain_diagnostics(keys, model, params, model.chains.prior)
      >>> health.stiffness  # of N(0, I) at s = 0.4
      Array([0.04, 0.04, 0.04], dtype=float32)
    """

    def one(key, position, logdensity_fn):
        key_chain, key_mala, key_curvature = jax.random.split(key, 3)
        state, _ = run_one(key_chain, chain, position, logdensity_fn)
        _, info = langevin.run(
            key_mala,
            state.position,
            logdensity_fn,
            num_steps=_MALA_STEPS,
            step_size=chain.step_size,
            kernel=mala.MALA,
        )
        curvature = largest_curvature(key_curvature, state.position, logdensity_fn)
        stiffness = chain.step_size**2 / 4 * curvature
        return ChainDiagnostics(info.acceptance_rate, stiffness)

    return vmap_chains(one, keys, model, params, chain, x, 1.0)


def largest_curvature(
    key: jax.Array,
    position: PyTree,
    logdensity_fn: LogDensity,
    num_iterations: int = 10,
) -> jax.Array:
    """Computes lambda_max, the largest eigenvalue of -Hessian of `logdensity_fn`, [].

    It uses Lanczos iteration from a random direction, which, unlike power iteration,
    does not mistake a large negative eigenvalue for the largest one. The result is a
    lower bound, and exact once `num_iterations` reaches the dimension. The memory is
    that of `num_iterations` positions.

    Args:
      key: typed key, [].
      position: where, any pytree of float arrays.
      logdensity_fn: position -> [], in nats.
      num_iterations: products with the Hessian.

    Example:
      >>> curvature = jnp.array([1.0, -30.0, 4.0])
      >>> logdensity_fn = lambda z: -0.5 * jnp.sum(curvature * z**2)
      >>> value = largest_curvature(jax.random.key(0), jnp.zeros(3), logdensity_fn)
      >>> print(f"{value:.3f}")
      4.000
    """
    flat, unravel = ravel_pytree(position)
    num_iterations = min(num_iterations, flat.size)
    grad = jax.grad(lambda z: -logdensity_fn(unravel(z)))

    def product(direction):
        # The Hessian is symmetric: no forward mode, which not every network allows.
        return jax.grad(lambda z: grad(z) @ direction)(flat)

    def grow(basis, k):
        """Adds the next direction of the Krylov space, orthogonal to the basis."""
        image = product(basis[k])
        residual = image
        for _ in range(2):  # the second time for what rounding left
            residual = residual - basis.T @ (basis @ residual)
        norm = jnp.linalg.norm(residual)
        # In a space that is exhausted the residual is rounding: leave the basis there.
        independent = norm > 1e-4 * jnp.linalg.norm(image)
        following = jnp.where(
            independent, residual / jnp.where(independent, norm, 1), 0
        )
        return basis.at[k + 1].set(following), image

    start = jax.random.normal(key, flat.shape, flat.dtype)
    basis = jnp.zeros((num_iterations + 1, flat.size), flat.dtype)
    basis = basis.at[0].set(start / jnp.linalg.norm(start))
    basis, images = jax.lax.scan(grow, basis, jnp.arange(num_iterations))
    basis = basis[:-1]
    projected = basis @ images.T
    # Unused directions repeat the first one's value, which is at most the result.
    unused = jnp.sum(basis**2, axis=1) < 0.5
    projected = projected + jnp.diag(jnp.where(unused, projected[0, 0], 0))
    return jnp.linalg.eigvalsh(0.5 * (projected + projected.T))[-1]
