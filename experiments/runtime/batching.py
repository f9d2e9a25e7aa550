"""Functions of many examples, batch by batch."""

import jax
import numpy as np


def map_batches(key: jax.Array | None, draw, indices: np.ndarray, batch_size: int):
    """Joins `draw(key, indices)` over batches of equal size: one compile.

    The memory is that of one batch. Batch i has the key folded with i; what draws
    nothing has None as its key. Returns NumPy arrays.

    Example:
      >>> map_batches(None, lambda _, indices: indices**2, np.arange(5), batch_size=2)
      array([ 0,  1,  4,  9, 16])
    """
    padded = np.resize(indices, -(-len(indices) // batch_size) * batch_size)
    drawn = [
        jax.device_get(draw(_fold(key, i), batch))
        for i, batch in enumerate(padded.reshape(-1, batch_size))
    ]
    return jax.tree.map(lambda *a: np.concatenate(a)[: len(indices)], *drawn)


def _fold(key, i):
    return None if key is None else jax.random.fold_in(key, i)
