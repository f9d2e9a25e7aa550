"""What several figures use."""

import jax
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def shown_times(values, count=12):
    """At most `count` of the indices of `values`, closer together at the start."""
    return spaced(len(values) - 1, count)


def spaced(num_steps, count):
    """At most `count` steps from 0 to num_steps, closer together at the start."""
    times = np.geomspace(1, num_steps, count - 1).round().astype(int).tolist()
    return sorted({0, *times})


def at(traced, t, num):
    """The first `num` latents of a trace at time t."""
    return jax.tree.map(lambda z: z[t, :num], traced)


def save(figure, file):
    """Writes a figure and closes it; returns the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)
    return file
