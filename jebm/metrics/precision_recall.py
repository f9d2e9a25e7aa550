"""Precision and recall of samples: how many are like data, how much data is covered."""

from typing import NamedTuple

import numpy as np

_ROWS = 1000  # of distances at a time


class PrecisionRecall(NamedTuple):
    """Shares, in [0, 1]."""

    precision: float
    recall: float


def precision_recall(
    real: np.ndarray, generated: np.ndarray, num_neighbours: int = 3
) -> PrecisionRecall:
    """Precision and recall by nearest neighbours, in float64.

    Precision is the share of generated features that lie within the support of the real
    ones: no further from one of these than its k-th nearest neighbour among them is.
    Recall is the share of real features within the support of the generated ones. Both
    grow with k and depend on N and M: compare them at equal k, N and M only.

    Args:
      real: [N, D], N > k.
      generated: [M, D], M > k.
      num_neighbours: k.

    Returns:
      precision and recall. Memory is that of 1,000 rows of distances.

    Raises:
      ValueError: if the sets do not fit, or have no k neighbours.

    References:
      Kynkaanniemi et al., "Improved precision and recall metric for assessing
      generative models", arXiv 1904.06991, with its k = 3.

    Example:
      >>> real = np.arange(10.0)[:, None]
      >>> precision_recall(real, np.array([[2.0], [2.5], [3.0], [3.5], [90.0]]))
      PrecisionRecall(precision=0.8, recall=0.9)
    """
    real, generated = np.asarray(real), np.asarray(generated)
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1:] != generated.shape[1:]:
        raise ValueError(
            "real and generated must be [N, D] and [M, D], got "
            f"{real.shape} and {generated.shape}"
        )
    if not 1 <= num_neighbours < min(len(real), len(generated)):
        raise ValueError(
            "num_neighbours must be at least 1 and less than both sets hold, "
            f"{len(real)} and {len(generated)}, got {num_neighbours}"
        )
    return PrecisionRecall(
        _share_within(generated, real, num_neighbours),
        _share_within(real, generated, num_neighbours),
    )


def _share_within(points, support, k):
    """Share of points within the balls around the support's points."""
    # Of itself too, the nearest of all.
    radii = [np.partition(d, k, axis=1)[:, k] for d in _squares(support, support)]
    radii = np.concatenate(radii)
    within = [(d <= radii).any(axis=1) for d in _squares(points, support)]
    return float(np.concatenate(within).mean())


def _squares(x, y):
    """Squared distances of x to y, some rows of x at a time: [rows, M] each."""
    y = np.asarray(y, np.float64)
    y_squares = (y**2).sum(1)
    for start in range(0, len(x), _ROWS):
        rows = np.asarray(x[start : start + _ROWS], np.float64)
        yield (rows**2).sum(1)[:, None] + y_squares - 2 * (rows @ y.T)
