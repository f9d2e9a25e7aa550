"""Training curves."""

import pathlib

import matplotlib
import numpy as np

from experiments.drawing.common import save
from experiments.rundir import curves
from experiments.rundir.curves import POSTERIOR, PRIOR

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def training_curves(lines: list[dict], folder: pathlib.Path) -> pathlib.Path:
    """Draws the metrics over training steps."""
    panels = curves.panels(lines)
    rows, columns = -(-len(panels) // 3), min(3, len(panels))
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.2 * columns, 2.4 * rows), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes.flat, panels, strict=False):
        for step in curves.rescues(lines):
            axis.axvline(step, color="crimson", linewidth=1, linestyle=":")
        if panel.limit is not None:
            axis.axhline(panel.limit, color="crimson", linewidth=1, linestyle="--")
        for name, colour in zip(panel.names, (POSTERIOR, PRIOR), strict=False):
            if points := curves.points(lines, name):
                label = curves.LABELS.get(name)
                axis.plot(*np.transpose(points), color=colour, label=label)
        axis.set(title=panel.title, xlabel="training step", ylabel=panel.unit)
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.3)
        if len(panel.names) > 1 and axis.lines:
            axis.legend(fontsize=8)
    return save(figure, folder / "training.png")
