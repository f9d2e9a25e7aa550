"""Distances between samples, as pure functions of arrays."""

from jebm.metrics.energy_distance import energy_distance
from jebm.metrics.frechet import feature_statistics, frechet_distance

__all__ = ["energy_distance", "feature_statistics", "frechet_distance"]
