"""Persistent chains: they go on at each visit from where the last one left them.

Positions are kept flat, [num, ...] with num a multiple of the batch size B, those of
one example side by side, and visited B at a time: at step t the slot t % (num / B) of
every example. Split over devices as the examples are, each device finds its own.
(arXiv 2306.06323 starts every chain anew; Tieleman 2008 lets them persist.)
"""

from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def read(chains: PyTree, step: jax.Array, batch_size: int) -> PyTree:
    """Returns the positions to visit at `step`.

    Args:
      chains: positions, leaves [num, ...].
      step: [], integer.
      batch_size: B.

    Returns:
      Leaves [B, ...].

    Example:
      >>> read(jnp.arange(6), jnp.int32(1), 2)  # examples have 0, 1, 2 and 3, 4, 5
      Array([1, 4], dtype=int32)
    """

    def one(chains):
        slots = _slots(chains, batch_size)
        return slots[:, step % slots.shape[1]]

    return jax.tree.map(one, chains)


def write(chains: PyTree, step: jax.Array, positions: PyTree) -> PyTree:
    """Returns the chains with those of `step` at `positions`, the inverse of `read`.

    Example:
      >>> write(jnp.zeros(6), jnp.int32(1), jnp.ones(2))
      Array([0., 1., 0., 0., 1., 0.], dtype=float32)
    """

    def one(chains, new):
        slots = _slots(chains, new.shape[0])
        return slots.at[:, step % slots.shape[1]].set(new).reshape(chains.shape)

    return jax.tree.map(one, chains, positions)


def reinitialise(
    keys: jax.Array, positions: PyTree, fresh: PyTree, probability: Any
) -> PyTree:
    """Replaces each position by a fresh one with that probability.

    Args:
      keys: typed keys, [B].
      positions: leaves [B, ...].
      fresh: like `positions`.
      probability: [].

    Example:
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> reinitialise(keys, jnp.zeros(3), jnp.ones(3), 1.0)
      Array([1., 1., 1.], dtype=float32)
    """
    restarted = jax.vmap(lambda key: jax.random.bernoulli(key, probability))(keys)

    def one(old, new):
        return jnp.where(restarted.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(one, positions, fresh)


def _slots(chains, batch_size):
    """Reshapes [num, ...] to [B, num / B, ...]."""
    return chains.reshape(batch_size, -1, *chains.shape[1:])
