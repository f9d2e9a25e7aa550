"""Weights of a small EfficientNet-Lite0, for tests of what it is used for."""

import pathlib

import numpy as np
from flax import traverse_util

from jebm.metrics import efficientnet
from tests import torch_files

SMALL = 8  # divides the numbers of channels


def random_state(reduction, seed):
    """Tensors by their published names, of a size that keeps activations of order 1."""
    rng = np.random.default_rng(seed)
    network = efficientnet.EfficientNetLite0(reduction)
    shapes = traverse_util.flatten_dict(efficientnet.variable_shapes(network), sep="/")
    state = {}
    for path, leaf in shapes.items():
        if path.endswith("kernel"):
            drawn = rng.standard_normal(leaf.shape[::-1])
            drawn *= np.sqrt(2 / np.prod(leaf.shape[:-1]))
            drawn = drawn.transpose(0, 1, 3, 2)  # [out, in, height, width]
        elif path.endswith(("var", "scale")):
            drawn = rng.uniform(0.5, 1.5, leaf.shape)
        else:
            drawn = 0.2 * rng.standard_normal(leaf.shape)
        state[efficientnet.tensor_name(path)] = drawn.astype(np.float32)
    return state


def write(path: pathlib.Path, seed: int = 0) -> pathlib.Path:
    """Writes a file of random weights."""
    return torch_files.write(path, random_state(SMALL, seed))
