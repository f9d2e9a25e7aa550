"""Frechet distance of infinitely many samples, from distances of fewer.

The distance of n samples to fixed statistics is too large, to first order by a constant
over n. So distances at several n lie on a line over 1/n, and its intercept is the
distance of the law that the samples are of: the FID_infinity of Chong and Forsyth,
arXiv 1911.07023. Where n is a few times the number of features D, the next order counts
too: here the line is a parabola in 1/n.
"""

from typing import NamedTuple

import numpy as np

from jebm.metrics import checks
from jebm.metrics.frechet import check_statistics, symmetric_root

NUM_BLOCKS = 10
# Blocks in a subset: all of them; all but one, which the error is taken from; and some
# down to a half, below which too few samples are left for their covariance.
_SIZES = (5, 7, 9, 10)


class Extrapolation(NamedTuple):
    """The distance at 1/n = 0."""

    value: float  # of a distance near 0 it can be negative
    standard_error: float


def extrapolated_frechet(
    features: np.ndarray, mean: np.ndarray, cov: np.ndarray
) -> Extrapolation:
    """Extrapolates the Frechet distance of samples to infinitely many of their law.

    The features are divided into ten blocks. A subset is of 5, 7, 9 or 10 blocks in a
    row, the first following the last, so that at every size all blocks count alike. The
    distances of each size are averaged, and a parabola in 1/n is fitted to the means.

    The error is that of the jackknife over the ten blocks. It is of the samples alone:
    mean and covariance of the reference are taken as exact, and where they are of few
    images the intercept is too large for it.

    Args:
      features: [N, D], of independent samples; N is at least 20, and should be 2 D.
      mean: [D], of the reference.
      cov: [D, D], of the reference, symmetric; may be singular.

    Returns:
      Distance and standard error, in the units of the features squared.

    Raises:
      ValueError: for fewer features, other shapes, or values that are not finite.

    Example:
      >>> x = np.random.default_rng(0).normal([3.0, 0.0], size=(5000, 2))
      >>> found = extrapolated_frechet(x, np.zeros(2), np.eye(2))
      >>> abs(found.value - 9) < 3 * found.standard_error < 0.3
      True
    """
    mean, cov = check_statistics("", mean, cov)
    features = np.asarray(features, np.float64)
    _check_features(features, len(mean))
    sums = _Sums.of(features, symmetric_root(cov))
    sizes, means, leaving_one_out = [], [], np.empty(0)
    for size in _SIZES:
        starts = range(NUM_BLOCKS if size < NUM_BLOCKS else 1)
        subsets = [np.arange(i, i + size) % NUM_BLOCKS for i in starts]
        counts, distances = zip(
            *(sums.distance(s, mean, cov) for s in subsets), strict=True
        )
        sizes.append(np.mean(counts))
        means.append(np.mean(distances))
        if size == NUM_BLOCKS - 1:
            leaving_one_out = np.array(distances)
    intercept = np.polyfit(len(features) / np.array(sizes), means, 2)[-1]
    variance = (NUM_BLOCKS - 1) * leaving_one_out.var()
    return Extrapolation(float(intercept), float(np.sqrt(variance)))


class _Sums(NamedTuple):
    """What distances of any blocks are made of, of features less their mean."""

    mean: np.ndarray  # [D], of all features
    root: np.ndarray  # [D, D], R = C^{1/2} of the reference's covariance
    counts: np.ndarray  # [blocks]
    totals: np.ndarray  # [blocks, D]
    squares: np.ndarray  # [blocks], sums of |x|^2
    products: np.ndarray  # [blocks, D, D], R (sum of x x^T) R

    @classmethod
    def of(cls, features, root):
        mean = features.mean(0)
        parts = np.array_split(features - mean, NUM_BLOCKS)
        return cls(
            mean,
            root,
            np.array([len(x) for x in parts]),
            np.stack([x.sum(0) for x in parts]),
            np.array([(x**2).sum() for x in parts]),
            np.stack([(x @ root).T @ (x @ root) for x in parts]),
        )

    def distance(self, blocks, mean, cov):
        """Counts the features in some blocks, and computes their Frechet distance."""
        count = self.counts[blocks].sum()
        shift = self.totals[blocks].sum(0) / count
        trace = (self.squares[blocks].sum() - count * shift @ shift) / (count - 1)
        # tr (S C)^{1/2} = tr (R S R)^{1/2}, S the covariance in the blocks.
        turned = shift @ self.root
        product = self.products[blocks].sum(0) - count * np.outer(turned, turned)
        eigenvalues = np.linalg.eigvalsh(product / (count - 1)).clip(0)
        distance = ((self.mean + shift - mean) ** 2).sum() + trace + np.trace(cov)
        return count, distance - 2 * np.sqrt(eigenvalues).sum()


def _check_features(features, dimensions):
    if features.ndim != 2 or len(features) < 2 * NUM_BLOCKS:
        raise ValueError(
            f"features must be [N >= {2 * NUM_BLOCKS}, D], got {features.shape}"
        )
    if features.shape[1] != dimensions:
        raise ValueError(
            f"unequal dimensions: features of {features.shape[1]}, a mean of "
            f"{dimensions}"
        )
    checks.finite("features", features)
