"""Inception score: how sure a classifier is, and of how many classes."""

import itertools
from typing import NamedTuple

import numpy as np

from jebm.metrics import checks


class InceptionScore(NamedTuple):
    """Mean over splits of the samples, and the standard deviation between them."""

    mean: float
    deviation: float


class ScoreSums(NamedTuple):
    """Sums over samples that a score is made of; those of two sets add up."""

    num: int
    probabilities: np.ndarray  # [C]
    negative_entropy: float  # of sum_c p_c log p_c, nats

    @classmethod
    def of(cls, logits: np.ndarray) -> "ScoreSums":
        """Computes the sums of logits [N, C], N >= 1, in float64.

        Raises:
          ValueError: if the logits are not [N, C] with at least 1 row and 1 column, or
            not all finite.
        """
        from scipy import special  # slow to import

        logits = _checked(logits)
        log_p = special.log_softmax(logits, axis=1)
        p = np.exp(log_p)
        return cls(len(logits), p.sum(0), float((p * log_p).sum()))

    def plus(self, other: "ScoreSums") -> "ScoreSums":
        """Adds the sums of both sets."""
        return ScoreSums(*(a + b for a, b in zip(self, other, strict=True)))

    def score(self) -> float:
        """Computes exp of the mean divergence of p(c | x) from the mean p(c)."""
        from scipy import special

        mean = self.probabilities / self.num
        divergence = self.negative_entropy / self.num + special.entr(mean).sum()
        return float(np.exp(divergence))


def inception_score(logits: np.ndarray, num_splits: int) -> InceptionScore:
    """Computes the Inception score of samples.

        exp( E_x KL( p(c | x) || E_x p(c | x) ) )

    on each split by itself: the first N / S samples, the next ones, and so on. Fewer
    samples score less, so that the number of splits belongs to the number.

    Args:
      logits: [N, C], of a classifier of C classes.
      num_splits: S, 1 <= S <= N.

    Returns:
      mean, between 1 and C, and standard deviation over the splits.

    Raises:
      ValueError: if the logits are not [N, C] or not all finite, or num_splits is out
        of range.

    References:
      Salimans et al., "Improved techniques for training GANs", arXiv 1606.03498.

    Example:
      >>> logits = np.array([[40.0, 0.0], [0.0, 40.0]])
      >>> round(inception_score(logits, num_splits=1).mean, 6)
      2.0
    """
    logits = _checked(logits)
    bounds = split_bounds(len(logits), num_splits)
    scores = [
        ScoreSums.of(logits[start:stop]).score()
        for start, stop in itertools.pairwise(bounds)
    ]
    return mean_score(scores)


def _checked(logits):
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or not logits.size:
        raise ValueError(f"logits must be [N >= 1, C >= 1], got {logits.shape}")
    checks.finite("logits", logits)
    return logits


def split_bounds(num: int, num_splits: int) -> list[int]:
    """Returns where the splits of `num` samples begin, and where the last one ends.

    Raises:
      ValueError: if there are more splits than samples, or none.

    Example:
      >>> split_bounds(10, 4)
      [0, 2, 5, 7, 10]
    """
    if not 1 <= num_splits <= num:
        raise ValueError(f"num_splits must lie in [1, {num}], got {num_splits}")
    return [i * num // num_splits for i in range(num_splits + 1)]


def mean_score(scores: list[float]) -> InceptionScore:
    """Computes mean and standard deviation of the scores of all splits."""
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))
