"""How samples compare: distances and scores, as pure functions of arrays."""

from jebm.metrics.energy_distance import energy_distance
from jebm.metrics.extrapolation import Extrapolation, extrapolated_frechet
from jebm.metrics.frechet import (
    Moments,
    feature_statistics,
    frechet_distance,
    merge_moments,
    moments,
    statistics_of,
)
from jebm.metrics.inception_score import inception_score
from jebm.metrics.kernel_distance import kernel_distance
from jebm.metrics.precision_recall import precision_recall

__all__ = [
    "Extrapolation",
    "Moments",
    "energy_distance",
    "extrapolated_frechet",
    "feature_statistics",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "merge_moments",
    "moments",
    "precision_recall",
    "statistics_of",
]
