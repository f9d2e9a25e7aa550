"""Precision and recall of samples: how many are like data, how much data is covered."""

from typing import NamedTuple

import numpy as np

from jebm.metrics import checks

# Of distances at a time. The points that they belong to stay in a processor's cache:
# with 1,000 of 2,048 features, distances would take three times as long.
_COLUMNS = 64


class PrecisionRecall(NamedTuple):
    """Shares, in [0, 1]."""

    precision: float
    recall: float


def precision_recall(
    real: np.ndarray, generated: np.ndarray, num_neighbours: int = 3
) -> PrecisionRecall:
    """Computes precision and recall by nearest neighbours, in float64.

    Precision is the share of generated features that lie within the support of the real
    ones: no further from one of these than its k-th nearest neighbour among them is.
    Recall is the share of real features within the support of the generated ones. Both
    grow with k and depend on N and M: compare them at equal k, N and M only. Distances
    come from differences, so that the numbers are the same wherever the features'
    origin lies, and copies lie within a ball of radius 0.

    Args:
      real: [N, D], N > k.
      generated: [M, D], M > k.
      num_neighbours: k.

    Returns:
      precision and recall. Memory is that of both sets in float64 and of 64 distances
      for each point of the larger one; time is that of N^2 + M^2 + N M distances.

    Raises:
      ValueError: if the sets do not fit, have no k neighbours, or are not all finite.

    References:
      Kynkaanniemi et al., "Improved precision and recall metric for assessing
      generative models", arXiv 1904.06991, with its k = 3.

    Example:
      >>> real = np.arange(10.0)[:, None]
      >>> precision_recall(real, np.array([[2.0], [2.5], [3.0], [3.5], [90.0]]))
      PrecisionRecall(precision=0.8, recall=0.9)
    """
    real, generated = (np.asarray(a, np.float64, order="C") for a in (real, generated))
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
    checks.finite("real", real)
    checks.finite("generated", generated)
    real_radii = _radii(real, num_neighbours)
    generated_radii = _radii(generated, num_neighbours)
    precise, covered = np.zeros(len(generated), bool), np.zeros(len(real), bool)
    for some, squares in _squares(real, generated):
        precise[some] = (squares <= real_radii[:, None]).any(0)
        covered |= (squares <= generated_radii[some]).any(1)
    return PrecisionRecall(float(precise.mean()), float(covered.mean()))


def _radii(points, k):
    """Computes the squared distances of points to their k-th nearest other one."""
    # Counted from 0, where each has itself.
    kth = [np.partition(d, k, axis=0)[k] for _, d in _squares(points, points)]
    return np.concatenate(kth)


def _squares(x, y):
    """Yields squared distances of x [N, D] to some y at a time: which, and [N, some].

    They are sums of squared differences: |x|^2 + |y|^2 - 2 x.y would cancel, so that a
    copy of a point would lie outside of a ball of radius 0 around it.
    """
    from scipy.spatial import distance  # slow to import

    for start in range(0, len(y), _COLUMNS):
        some = slice(start, start + _COLUMNS)
        yield some, distance.cdist(x, y[some], "sqeuclidean")
