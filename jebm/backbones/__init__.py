"""Backbones: multi-layer generators under the contract of `jebm.hierarchy`."""
