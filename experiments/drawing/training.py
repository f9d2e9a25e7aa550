"""Training curves: the metrics over training steps."""

from typing import NamedTuple

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.drawing.common import ALARM, POSTERIOR, PRIOR, subplots
from experiments.rundir import curves
from experiments.rundir.metrics import read_metrics
from experiments.runs import Run


class Training(NamedTuple):
    """The lines of metrics.jsonl."""

    lines: list[dict[str, float]]


def compute(key: jax.Array, run: Run) -> Training:
    """Reads the metrics; there is no noise in them."""
    del key
    return Training(read_metrics(run.path))


def draw(training: Training) -> Figure:
    """Draws a panel for each of `curves.panels`, three in a row."""
    panels = curves.panels(training.lines)
    rows, columns = -(-len(panels) // 3), min(3, len(panels))
    figure, axes = subplots(rows, columns, (3.2 * columns, 2.4 * rows))
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw_panel(axis, panel, training.lines)
    return figure


def _draw_panel(axis: Axes, panel: curves.Panel, lines):
    for step in curves.rollbacks(lines):
        axis.axvline(step, color=ALARM, linewidth=1, linestyle=":")
    if panel.limit is not None:
        axis.axhline(panel.limit, color=ALARM, linewidth=1, linestyle="--")
    for name, colour in zip(panel.names, (POSTERIOR, PRIOR), strict=False):
        if name in curves.drawable(lines):
            points = curves.points(lines, name, panel.beside)
            steps, values = np.array(points, float).T  # None is nan: a break
            label = curves.LABELS.get(name)
            dots = {"marker": ".", "markersize": 3, "markevery": _alone(values)}
            axis.plot(steps, values, color=colour, label=label, **dots)
    axis.set(title=panel.title, xlabel="training step", ylabel=panel.unit)
    axis.title.set_fontsize(10)
    axis.grid(alpha=0.3)
    if len(panel.names) > 1 and axis.lines:
        axis.legend(fontsize=8)


def _alone(values):
    """Finds the values between two breaks, which a line does not show."""
    there = np.pad(np.isfinite(values), 1)
    return np.flatnonzero(there[1:-1] & ~there[:-2] & ~there[2:]).tolist()
