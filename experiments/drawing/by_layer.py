"""Held-out images, decoded from ever fewer layers of their posterior.

z_{>k} is that of the image, and the layers below are drawn from the prior given it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jebm
from experiments.data.pixels import to_unit
from experiments.drawing.common import layer_cuts, show_grid, subplots
from experiments.runs import Run
from jebm.chains import decode

_NUM_IMAGES = 8


class ByLayer(NamedTuple):
    """Images by the title of their column, each [num, H, W, C] in [0, 1]."""

    columns: dict[str, np.ndarray]


def compute(key: jax.Array, run: Run) -> ByLayer:
    """Draws the posterior of held-out images, and decodes it from its upper layers."""
    key_posterior, key_prior = jax.random.split(key)
    model, params = run.model, run.params
    x = to_unit(run.heldout[:_NUM_IMAGES])
    latents = jebm.posterior_sample(key_posterior, model, params, jnp.asarray(x))
    columns = {"image": x, "all layers": decode(model, params, latents)}
    for k in layer_cuts(len(latents)):
        title = f"z_{k + 1} up" if k + 1 < len(latents) else f"z_{k + 1}"
        sampled = jebm.sample(key_prior, model, params, len(x), above=latents[k:])
        columns[title] = sampled.x
    return ByLayer({title: np.asarray(images) for title, images in columns.items()})


def draw(by_layer: ByLayer) -> Figure:
    """Draws a column of images per number of layers."""
    num = len(by_layer.columns)
    figure, axes = subplots(1, num, (1.1 * num, 7.6))
    for axis, (title, images) in zip(axes[0], by_layer.columns.items(), strict=True):
        show_grid(axis, images, columns=1)
        axis.set_title(title, fontsize=9)
    figure.suptitle(
        "These layers come from the image,\nthe others are drawn anew", fontsize=10
    )
    return figure
