"""Chains along the way: images of some, above a number of all."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.drawing.common import PRIOR, at, show_grid, spaced, subplots
from experiments.evaluation.traces import energies_along
from experiments.runs import Run
from jebm.chains import decode, example_keys, trace_chains
from jebm.hierarchy import Latents
from jebm.kernels import Chain

NUM_CHAINS, NUM_SHOWN = 256, 8
_NUM_TIMES = 12  # columns of images, at most


class Chains(NamedTuple):
    """Chains along the way.

    Attributes:
      images: of the first chains at some times, in [0, 1], [shown, columns, H, W, C].
      labels: of the columns: their steps.
      values: of every chain at every time, [T, chains].
      every: steps between two times.
    """

    images: np.ndarray
    labels: tuple[str, ...]
    values: np.ndarray
    every: int


def trace_prior(
    key: jax.Array, run: Run, chain: Chain, num: int, every: int
) -> Latents:
    """Traces `num` chains of the tilted prior, [T, num, *shape_i] per layer."""
    trace = jax.jit(
        lambda keys, params: trace_chains(keys, run.model, params, chain, every=every)
    )
    return trace(example_keys(key, jnp.arange(num)), run.params)


def compute_prior(key: jax.Array, run: Run, chain: Chain, every: int) -> Chains:
    """Returns chains of the tilted prior, and their energies in nats."""
    traced = trace_prior(key, run, chain, NUM_CHAINS, every)
    return decode_some(
        run, traced, energies_along(run.model, run.params, traced), every
    )


def decode_some(run: Run, traced: Latents, values, every: int) -> Chains:
    """Decodes the first chains of a trace at times closer together at the start."""
    times = spaced(len(values) - 1, _NUM_TIMES)
    images = [decode(run.model, run.params, at(traced, t, NUM_SHOWN)) for t in times]
    labels = tuple(str(t * every) for t in times)
    return Chains(np.stack(images, axis=1), labels, np.asarray(values), every)


def draw_chains(
    chains: Chains,
    title: str,
    value_label: str = "E (nats)",
    trained_steps: int | None = None,
) -> Figure:
    """Draws a row of images per chain, above the profile of the values of all.

    A dotted line is at `trained_steps`, where the model is sampled.
    """
    figure, axes = subplots(2, 1, (8, 7.5), height_ratios=[3, 1])
    top, bottom = axes[:, 0]
    _draw_images(top, chains)
    top.set(title=title, xlabel="step of the chain")
    _draw_profile(bottom, chains)
    if trained_steps is not None:
        bottom.axvline(trained_steps, color="black", linewidth=1, linestyle=":")
        bottom.annotate(" as sampled", (trained_steps, bottom.get_ylim()[1]), va="top")
    bottom.set(xlabel="step of the chain", ylabel=value_label)
    return figure


def _draw_images(axis: Axes, chains):
    columns = len(chains.labels)
    width = show_grid(
        axis, chains.images.reshape(-1, *chains.images.shape[2:]), columns
    )
    centres = [width / columns * (i + 0.5) for i in range(columns)]
    axis.set_xticks(centres, chains.labels)


def _draw_profile(axis: Axes, chains):
    mean, spread = chains.values.mean(axis=1), chains.values.std(axis=1)
    steps = np.arange(len(mean)) * chains.every
    axis.plot(steps, mean, color=PRIOR)
    axis.fill_between(steps, mean - spread, mean + spread, color=PRIOR, alpha=0.2)
    axis.set(xlim=(0, steps[-1]))
    axis.set_title(
        f"{chains.values.shape[1]} chains: mean and standard deviation", fontsize=10
    )
    axis.grid(alpha=0.3)
