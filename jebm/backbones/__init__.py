"""Backbones: multi-layer generators under the contract of `jebm.hierarchy`."""

from jebm.backbones.ladder import Ladder
from jebm.backbones.nvae import NVAE
from jebm.backbones.vector import Vector

__all__ = ["NVAE", "Ladder", "Vector"]
