"""Made-up images of the shapes of a data set, to run its configuration without it.

Every output of such a run says so: see `LABEL`, `datasets.described` and
`pictures.stamp`.
"""

import numpy as np
from PIL import Image

LABEL = "FAKE DATA"
_SIZES = {"train": 512, "test": 128}
_CLASSES = 10


def make(
    shape: tuple[int, int, int], labelled: bool, seed: int = 0
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Makes images uint8 [N, *shape] and labels [N] of both splits, by `seed` alone.

    Each is half a smooth pattern of its class and half one of its own; where not
    `labelled` there is one class.
    """
    rng = np.random.default_rng(seed)
    classes = _CLASSES if labelled else 1
    patterns = _smooth(rng, classes, shape)
    splits = {}
    for name, num in _SIZES.items():
        labels = np.arange(num) % classes
        own = _smooth(rng, num, shape)
        splits[name] = patterns[labels] // 2 + own // 2, labels
    return splits


def _smooth(rng, num, shape):
    height, width, channels = shape
    coarse = rng.integers(0, 256, (num, channels, 4, 4), np.uint8)
    maps = [
        Image.fromarray(c).resize((width, height), Image.Resampling.BILINEAR)
        for c in coarse.reshape(-1, 4, 4)
    ]
    stacked = np.stack([np.asarray(m) for m in maps])
    return np.moveaxis(stacked.reshape(num, channels, height, width), 1, -1)
