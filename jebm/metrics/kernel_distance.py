"""Kernel distance between two sets of features; on Inception's, the KID."""

from typing import NamedTuple

import numpy as np

from jebm.metrics import checks


class KernelDistance(NamedTuple):
    """An unbiased estimate, which can be negative."""

    value: float
    standard_error: float  # nan of a single block


def kernel_distance(
    x: np.ndarray, y: np.ndarray, block_size: int = 1000
) -> KernelDistance:
    """Estimates squared maximum mean discrepancy by a polynomial kernel, in float64.

        MMD^2 = E k(X, X') + E k(Y, Y') - 2 E k(X, Y),     k(x, y) = (x.y / D + 1)^3

    Each block takes `block_size` features of x and as many of y that no other block
    takes, in their order, and estimates it without bias: no pair of a feature and
    itself counts. The value is the mean over blocks; what is left of a longer set, less
    than a block, does not count.

    Args:
      x: [N, D].
      y: [M, D].
      block_size: of each set in a block; where N or M is less, their minimum.

    Returns:
      MMD^2, in the units of the kernel, and its standard error from the blocks.

    Raises:
      ValueError: if x and y are not two sets of at least 2 points of one dimension, a
        value is not finite, or block_size is less than 2.

    References:
      Binkowski et al., "Demystifying MMD GANs", arXiv 1801.01401. (There blocks are
      drawn at random and overlap; the mean is the same, the spread is no error.)

    Example:
      >>> x = np.array([[1.0], [1.0]])
      >>> kernel_distance(x, -x).value  # 2 * 2^3 - 2 * 0^3
      16.0
    """
    x, y = np.asarray(x), np.asarray(y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1:] != y.shape[1:] or not x.shape[1]:
        raise ValueError(f"x and y must be [N, D] and [M, D], got {x.shape}, {y.shape}")
    if block_size < 2 or min(len(x), len(y)) < 2:
        raise ValueError(
            "a block must have at least 2 features of each set, got block_size "
            f"{block_size} and sets of {len(x)} and {len(y)}"
        )
    checks.finite("x", x)
    checks.finite("y", y)
    size = min(block_size, len(x), len(y))
    values = [
        _block(*(np.asarray(a[start : start + size], np.float64) for a in (x, y)))
        for start in range(0, min(len(x), len(y)) - size + 1, size)
    ]
    num = len(values)
    error = np.std(values, ddof=1) / np.sqrt(num) if num > 1 else np.nan
    return KernelDistance(float(np.mean(values)), float(error))


def _block(x, y):
    size = len(x)
    within = sum(k.sum() - np.trace(k) for k in (_kernel(x, x), _kernel(y, y)))
    return within / (size * (size - 1)) - 2 * _kernel(x, y).mean()


def _kernel(x, y):
    return (x @ y.T / x.shape[1] + 1) ** 3
