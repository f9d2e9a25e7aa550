"""Functions of many examples, batch by batch."""

import jax
import numpy as np


def map_batches(key, draw, indices: np.ndarray, batch_size: int):
    """Joins `draw(key, indices)` over batches of equal size: one compile.

    The memory of the chains is that of one batch. Returns NumPy arrays.
    """
    padded = np.resize(indices, -(-len(indices) // batch_size) * batch_size)
    drawn = [
        jax.device_get(draw(jax.random.fold_in(key, i), batch))
        for i, batch in enumerate(padded.reshape(-1, batch_size))
    ]
    return jax.tree.map(lambda *a: np.concatenate(a)[: len(indices)], *drawn)
