"""The log-normaliser of any tilt of N(0, I), by annealed importance sampling.

    pi_b(eps) = N(eps; 0, I) exp(b g(eps)),      b from 0 to 1

What `jebm.partition` does for the energy of a model, for a function g of flat eps.
(arXiv physics/9803008)
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jebm import mala
from jebm.chains import example_keys
from jebm.partition import (
    ADAPTED_TO,
    Estimate,
    estimate,
    even_schedule,
    tempered,
)

Tilt = Callable[[Any, jax.Array], jax.Array]


@functools.partial(jax.jit, static_argnums=(1, 3, 4, 5, 6))
def log_z(
    key: jax.Array,
    g: Tilt,
    params: Any,
    size: int,
    dtype: jnp.dtype,
    num_particles: int = 500,
    num_temperatures: int = 500,
) -> Estimate:
    """Estimates log E[exp g(eps)], eps ~ N(0, I).

    A first run chooses the temperatures and the steps, as `jebm.partition.tune` does.

    Args:
      key: typed key, []. Particle n draws from `fold_in(key, n)`.
      g: (params, eps [D]) -> [], nats; hashable, as it is compiled with.
      params: any pytree.
      size: D.
      dtype: of eps.
      num_particles: weights that the estimate averages.
      num_temperatures: MALA steps of each particle.

    Returns:
      An `Estimate` of fields [], nats. Its error does not cover what no particle found.

    Example:
      >>> def g(slope, eps):
      ...     return slope * eps[0]
      >>> found = log_z(jax.random.key(0), g, 0.0, 3, jnp.float32, 50, 10)
      >>> found.value.item(), found.effective_samples.item()  # N(0, I) itself
      (0.0, 50.0)
    """
    tilt = functools.partial(g, params)
    key_tune, key_run = jax.random.split(key)
    b, step_sizes = _tuned(key_tune, tilt, size, dtype, num_temperatures)

    def one(key):
        def body(carry, inputs):
            eps, log_w = carry
            t, before, after, step_size = inputs
            log_w += (after - before) * tilt(eps)
            return (_move(key, t, eps, tilt, after, step_size)[0], log_w), None

        start = _first(key, size, dtype), jnp.zeros((), dtype)
        steps = (jnp.arange(num_temperatures), b[:-1], b[1:], step_sizes)
        return jax.lax.scan(body, start, steps)[0][1]

    keys = example_keys(key_run, jnp.arange(num_particles))
    return estimate(jax.vmap(one)(keys))


_PILOTS = 64  # particles that the steps are chosen on
_GAIN = 0.2  # log step sizes per unit of acceptance, at each temperature


def _first(key, size, dtype):
    return jax.random.normal(jax.random.fold_in(key, 0), (size,), dtype)


def _move(key, t, eps, tilt, b, step_size):
    """Takes a MALA step at b, the t-th of a particle, and returns its acceptance."""
    target = tempered(lambda eps: tilt(eps[0]), b)
    state, info = mala.MALA.step(
        jax.random.fold_in(key, t + 1), mala.init((eps,), target), target, step_size
    )
    return state.position[0], info.acceptance_rate


def _tuned(key, tilt, size, dtype, num):
    """Tunes b [num + 1], dense where g varies much, and step sizes but for the first.

    Equal distances are those of the integral over b of g's standard deviation, the
    thermodynamic length. (arXiv 0706.0559)
    """
    keys = example_keys(key, jnp.arange(_PILOTS))
    # Dense where g is not yet known to be large.
    b = jnp.linspace(0, 1, num + 1, dtype=dtype) ** 3

    def body(carry, inputs):
        eps, log_step = carry
        t, b = inputs
        eps, acceptance = jax.vmap(
            lambda key, eps: _move(key, t, eps, tilt, b, jnp.exp(log_step))
        )(keys, eps)
        log_step += _GAIN * (acceptance.mean() - ADAPTED_TO)
        log_step = jnp.minimum(log_step, 0.0)
        return (eps, log_step), (log_step, jax.vmap(tilt)(eps).std())

    eps = jax.vmap(lambda key: _first(key, size, dtype))(keys)
    start = eps, jnp.zeros((), dtype)
    _, (log_steps, spreads) = jax.lax.scan(body, start, (jnp.arange(num), b[1:]))
    spreads = jnp.concatenate([jax.vmap(tilt)(eps).std()[None], spreads])
    return even_schedule(b, log_steps, spreads)
