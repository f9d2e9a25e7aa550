"""What several figures use: axes, colours, times and layers that are shown, files."""

from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import pictures
from experiments.rundir import curves

PRIOR, POSTERIOR, ALARM = curves.PRIOR, curves.POSTERIOR, "crimson"


def subplots(
    rows: int, columns: int, size: tuple[float, float], **options: Any
) -> tuple[Figure, np.ndarray]:
    """Makes a figure of `size` in inches and its axes, [rows, columns].

    It is none of pyplot's: no backend need be chosen, "Agg" writes it whatever the
    caller shows figures with, and it goes when nobody holds it.
    """
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def show_grid(axis: Axes, images: np.ndarray, columns: int | None = None) -> int:
    """Shows `pictures.grid` of images on an axis; returns its width in pixels."""
    picture = np.asarray(pictures.grid(images, columns))
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
    axis.set(xticks=[], yticks=[])
    return picture.shape[1]


def spaced(num_steps: int, count: int) -> list[int]:
    """Returns at most `count` steps from 0 to num_steps, closer at the start.

    Example:
      >>> spaced(40, 6)
      [0, 1, 3, 6, 16, 40]
    """
    times = np.geomspace(1, num_steps, count - 1).round().astype(int).tolist()
    return sorted({0, *times})


def at(traced: Any, t: int, num: int) -> Any:
    """Returns the first `num` latents of a trace [T, B, ...] at time t."""
    return jax.tree.map(lambda z: z[t, :num], traced)


def layer_cuts(layers: int) -> list[int]:
    """Returns up to four k, 1 <= k < layers, evenly spaced: z_{>k} is kept.

    Example:
      >>> layer_cuts(30)
      [1, 10, 20, 29]
    """
    return sorted(set(np.linspace(1, layers - 1, 4).round().astype(int).tolist()))
