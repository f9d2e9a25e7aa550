"""Made-up arrays, to draw without a model."""

import json

import numpy as np

LINES = [
    {
        "step": 2 * i,
        "log_likelihood_nats": -30.0 / i,
        "energy_positive_nats": 0.1 * i,
        "energy_negative_nats": -0.2 * i if i != 3 else None,
        "prior_stiffness": 0.1 * i,
        "posterior_stiffness": 0.02 * i,
    }
    for i in range(1, 5)
]
WENT_BACK = {"step": 4, "rollbacks": 1, "rollback": "back to step 4"}


def lines_text() -> str:
    """What metrics.jsonl holds of `LINES`."""
    return "".join(json.dumps(line) + "\n" for line in LINES)


def grey(*shape) -> np.ndarray:
    """Images of [*shape, 8, 8, 1], of random grey."""
    return np.random.default_rng(0).uniform(size=(*shape, 8, 8, 1))


def titles(figure) -> list[str]:
    """The titles of the axes of a figure."""
    return [axis.get_title() for axis in figure.axes]


def shown(axis) -> np.ndarray:
    """The pixels of the one picture of an axis."""
    (picture,) = axis.get_images()
    return np.asarray(picture.get_array())
