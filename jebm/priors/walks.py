"""Tested chains that priors learn from and draw by, one chain to an example.

Memory does not grow with the steps. A chain that persists goes on at each visit from
where the last one left it, as in `jebm.persistent`, and all share one step size, which
follows the acceptance: see `jebm.learning`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jebm import chains, langevin, mala, persistent


class Walk(NamedTuple):
    """Chains that persist."""

    positions: Any  # leaves [P, ...], P a multiple of the batch size
    step_size: jax.Array  # []


# What the key of an example is folded with: its start draws from the key itself.
STEPS, EXTRA = 1, 2


def example_keys(key: jax.Array, num: int, role: int) -> jax.Array:
    """Makes one role's key per example, [num]; example n's is of `fold_in(key, n)`."""
    keys = chains.example_keys(key, jnp.arange(num))
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, role)


def run(
    keys: jax.Array,
    start: Any,
    logdensity_fn: Callable[..., jax.Array],
    num_steps: int,
    step_size: jax.typing.ArrayLike,
    *given: Any,
    kernel: langevin.Kernel = mala.MALA,
) -> tuple[Any, jax.Array]:
    """Runs one chain per key.

    Args:
      keys: typed keys, [B].
      start: positions, leaves [B, ...].
      logdensity_fn: one position, and what is `given` to one chain -> [], nats.
      num_steps: K.
      step_size: [], or [B] for one of each chain.
      *given: pytrees of leaves [B, ...].
      kernel: `mala.MALA`, or `langevin.LANGEVIN` for steps that no one tests.

    Returns:
      The last positions, and each chain's acceptance, [B].

    Example:
      >>> keys = jax.random.split(jax.random.key(0), 500)
      >>> fn = lambda eps, mean: -0.5 * jnp.sum((eps - mean) ** 2)
      >>> end, rate = run(keys, jnp.zeros((500, 2)), fn, 20, 1.0, jnp.ones((500, 2)))
      >>> end.shape, bool(abs(end.mean() - 1) < 0.1), bool(rate.mean() > 0.5)
      ((500, 2), True, True)
    """
    dtype = jax.tree.leaves(start)[0].dtype
    step_sizes = jnp.broadcast_to(jnp.asarray(step_size, dtype), keys.shape)

    def one(key, position, step_size, given):
        state, info = langevin.run(
            key,
            position,
            lambda position: logdensity_fn(position, *given),
            num_steps=num_steps,
            step_size=step_size,
            kernel=kernel,
        )
        return state.position, info.acceptance_rate

    return jax.vmap(one)(keys, start, step_sizes, given)


def visit(
    key: jax.Array,
    walk: Walk,
    step: jax.Array,
    num: int,
    logdensity_fn: Callable[[Any], jax.Array],
    num_steps: int,
    target_acceptance: float,
) -> tuple[Any, Walk, jax.Array]:
    """Moves the `num` chains whose turn it is at `step`.

    Returns:
      Where they are, leaves [num, ...]; all chains after the visit, and their next step
      size; the mean acceptance, [].

    Raises:
      ValueError: if the chains are no multiple of `num`.
    """
    kept = len(jax.tree.leaves(walk.positions)[0])
    if kept % num:
        raise ValueError(
            f"persistent_chains must be a multiple of the batch size, got {kept} for "
            f"{num} examples"
        )
    start = persistent.read(walk.positions, step, num)
    keys = example_keys(key, num, STEPS)
    end, acceptance = run(keys, start, logdensity_fn, num_steps, walk.step_size)
    rate = acceptance.mean()
    step_size = mala.adapted_step(walk.step_size, rate, target_acceptance)
    return end, Walk(persistent.write(walk.positions, step, end), step_size), rate
