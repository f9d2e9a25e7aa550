"""The log-normaliser of any tilt of N(0, I), a function g of flat eps.

What `jebm.partition` does for the energy of a model, for priors that have none: by
annealed importance sampling, `jebm.annealing`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jebm import annealing
from jebm.chains import example_keys
from jebm.importance import Estimate, estimate

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

    def tilt(eps):
        return g(params, eps[0])

    def start(keys):
        return (jax.vmap(lambda key: _first(key, size, dtype))(keys),)

    key_tune, key_run = jax.random.split(key)
    keys = example_keys(key_tune, jnp.arange(_PILOTS))
    schedule = annealing.tune(keys, start(keys), tilt, num_temperatures)
    keys = example_keys(key_run, jnp.arange(num_particles))
    return estimate(annealing.run(keys, start(keys), tilt, schedule)[1])


_PILOTS = 64  # particles that the steps are chosen on


def _first(key, size, dtype):
    return jax.random.normal(jax.random.fold_in(key, 0), (size,), dtype)
