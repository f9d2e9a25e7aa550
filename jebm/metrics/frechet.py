"""Frechet distance between two sets of features, taken as Gaussian."""

from typing import NamedTuple

import numpy as np

from jebm.metrics import checks


def feature_statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes mean and covariance of features, in float64.

    The covariance has N - 1 in the denominator, as in `numpy.cov`; its rank is N - 1 at
    most.

    Args:
      features: [N, D], N >= 2.

    Returns:
      mean [D] and covariance [D, D], in the units of the features and their square.

    Raises:
      ValueError: if the features are not [N, D] with at least 2 rows and 1 column, or
        not all finite.

    Example:
      >>> mean, covariance = feature_statistics(np.array([[0, 1], [2, 1]]))
      >>> mean.tolist(), covariance.tolist()
      ([1.0, 1.0], [[2.0, 0.0], [0.0, 0.0]])
    """
    if np.ndim(features) != 2 or len(features) < 2 or not np.size(features):
        shape = np.shape(features)
        raise ValueError(f"features must be [N >= 2, D >= 1], got {shape}")
    return statistics_of(moments(features))


class Moments(NamedTuple):
    """Sums that statistics are made of; those of two sets can be merged."""

    count: int
    mean: np.ndarray  # [D]
    scatter: np.ndarray  # [D, D], the sum of (x - mean)(x - mean)^T


def moments(features: np.ndarray) -> Moments:
    """Computes the moments of features [N, D], N >= 1, in float64.

    Raises:
      ValueError: if the features are not [N, D] with at least 1 row and 1 column, or
        not all finite.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or not features.size:
        raise ValueError(f"features must be [N >= 1, D >= 1], got {features.shape}")
    checks.finite("features", features)
    mean = features.mean(0)
    centred = features - mean
    return Moments(len(features), mean, centred.T @ centred)


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Merges the moments of two sets: for features that come in batches.

    Sums are centred, so that nothing cancels however many batches there are. (Chan,
    Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979.)

    Raises:
      ValueError: if a value of either is not finite.

    Example:
      >>> one, two = np.array([[0.0]]), np.array([[2.0], [4.0]])
      >>> both = merge_moments(moments(one), moments(two))
      >>> both.count, both.mean.item(), both.scatter.item()
      (3, 2.0, 8.0)
    """
    _check_moments("a", a)
    _check_moments("b", b)
    count = a.count + b.count
    shift = b.mean - a.mean
    mean = a.mean + shift * (b.count / count)
    between = np.outer(shift, shift) * (a.count * b.count / count)
    return Moments(count, mean, a.scatter + b.scatter + between)


def statistics_of(moments: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Computes mean [D] and covariance [D, D], as `feature_statistics`.

    Raises:
      ValueError: if the moments are of fewer than 2 features, or not all finite.
    """
    if moments.count < 2:
        raise ValueError(f"a covariance needs 2 features, got {moments.count}")
    _check_moments("moments", moments)
    return moments.mean, moments.scatter / (moments.count - 1)


def frechet_distance(
    mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray
) -> float:
    """Computes the squared 2-Wasserstein distance between two Gaussians.

        d = |m1 - m2|^2 + tr( C1 + C2 - 2 (C1 C2)^{1/2} )

    On Inception's features this is the FID. The statistics of finite samples make it
    too large, the more so the fewer samples and the more features there are: compare
    distances at equal N only.

    Args:
      mean1, mean2: [D].
      cov1, cov2: [D, D], symmetric; may be singular.

    Returns:
      d >= 0, in the units of the features squared.

    Raises:
      ValueError: if the shapes do not fit, a value is not finite, or a covariance is
        not symmetric.

    References:
      Dowson, Landau, "The Frechet distance between multivariate normal distributions",
      J. Multivariate Anal. 12 (1982).

    Example:
      >>> frechet_distance(np.zeros(1), np.eye(1), np.array([3.0]), 4 * np.eye(1))
      10.0
    """
    mean1, cov1 = check_statistics("1", mean1, cov1)
    mean2, cov2 = check_statistics("2", mean2, cov2)
    if mean1.shape != mean2.shape:
        raise ValueError(f"unequal dimensions: {mean1.shape} and {mean2.shape}")
    # tr (C1 C2)^{1/2} is the sum of the singular values of C1^{1/2} C2^{1/2}. Taking
    # them there, and not as roots of eigenvalues of C1 C2, keeps the full precision
    # where covariances are singular.
    product = symmetric_root(cov1) @ symmetric_root(cov2)
    root_trace = np.linalg.svd(product, compute_uv=False).sum()
    distance = ((mean1 - mean2) ** 2).sum() + np.trace(cov1 + cov2) - 2 * root_trace
    return float(max(distance, 0))


def symmetric_root(covariance: np.ndarray) -> np.ndarray:
    """Computes the symmetric root of a symmetric matrix [D, D] of eigenvalues >= 0.

    Example:
      >>> symmetric_root(np.diag([4.0, 9.0])).tolist()
      [[2.0, 0.0], [0.0, 3.0]]
    """
    eigenvalues, vectors = np.linalg.eigh(covariance)
    # Rounding makes zero eigenvalues slightly negative.
    return vectors * np.sqrt(eigenvalues.clip(0)) @ vectors.T


def check_statistics(
    which: str, mean: np.ndarray, cov: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean [D] and covariance [D, D], float64; `which` follows both in errors.

    Raises:
      ValueError: as `frechet_distance`.
    """
    mean, cov = np.asarray(mean, np.float64), np.asarray(cov, np.float64)
    if mean.ndim != 1 or not mean.size or cov.shape != 2 * mean.shape:
        raise ValueError(
            f"mean{which} and cov{which} must be [D] and [D, D], "
            f"got {mean.shape} and {cov.shape}"
        )
    checks.finite(f"mean{which}", mean)
    checks.finite(f"cov{which}", cov)
    if not np.allclose(cov, cov.T, rtol=0, atol=1e-5 * np.abs(cov).max()):
        raise ValueError(f"cov{which} must be symmetric")
    return mean, cov


def _check_moments(name, moments):
    checks.finite(f"{name}.mean", moments.mean)
    checks.finite(f"{name}.scatter", moments.scatter)
