"""Distances between samples, as pure functions of arrays."""

from jebm.metrics.energy_distance import energy_distance

__all__ = ["energy_distance"]
