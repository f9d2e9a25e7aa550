"""Energy distance between two samples of any dimension."""

import math

import numpy as np

from jebm.metrics import checks


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Estimates the distance between the laws that two samples were drawn from.

        D = sqrt( 2 E|X - Y| - E|X - X'| - E|Y - Y'| )

    It is 0 only for equal laws. The means run over all pairs, the zero distances of a
    point to itself included, so that D is never negative and slightly too large: by
    about sqrt((E|X - X'| + E|Y - Y'|) / N) at equal laws.

    Args:
      x: [N, D].
      y: [M, D].

    Returns:
      D, in the units of x.

    Raises:
      ValueError: if x and y are not two non-empty sets of points of one dimension,
        or a value is not finite.

    References:
      Szekely, Rizzo, "Energy statistics: a class of statistics based on distances",
      J. Stat. Plan. Inference 143 (2013). D here is the square root, as in SciPy.

    Example:
      >>> energy_distance(np.zeros((5, 1)), np.array([[2.0]]))
      2.0
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or not x.size * y.size:
        raise ValueError(
            f"x and y must be non-empty [N, D] and [M, D], got {x.shape} and {y.shape}"
        )
    checks.finite("x", x)
    checks.finite("y", y)
    from scipy.spatial import distance  # slow to import

    between = distance.cdist(x, y).mean()
    within_x, within_y = distance.cdist(x, x).mean(), distance.cdist(y, y).mean()
    return math.sqrt(max(2 * between - within_x - within_y, 0))
