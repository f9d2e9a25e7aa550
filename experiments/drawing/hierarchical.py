"""What each layer holds: rows share z_{>k}, and the layers below are drawn again."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import jebm
from experiments.drawing.common import layer_cuts, show_grid, subplots
from experiments.evaluation import classifier
from experiments.runs import Run

_ROWS, _COLUMNS = 64, 16  # z_{>k} kept, draws given each
_ALL_ROWS = 128  # of every k together: more layers are not to cost more chains
_SHOWN = 8  # of either
_PRIORS = {"ebm": "tilted", "gaussian": "Gaussian"}


class Rows(NamedTuple):
    """Images that share z_{>k} in a row.

    Attributes:
      k: how many layers are drawn again.
      prior: "ebm" or "gaussian".
      images: the first of them, in [0, 1], [8, 8, H, W, C].
      agreement: of the labels of all, see `agreement_of`; None without a classifier.
    """

    k: int
    prior: str
    images: np.ndarray
    agreement: dict[str, float] | None


class Hierarchical(NamedTuple):
    """Rows of every k and both priors, of a model of so many layers."""

    layers: int
    panels: tuple[Rows, ...]


def compute(key: jax.Array, run: Run) -> Hierarchical:
    """Draws rows for some k below L, of the tilted and of the Gaussian prior."""
    name, layers = run.experiment.data.name, len(run.model.backbone.latent_shapes)
    labels = classifier.labels(name) if name in classifier.known() else None
    cuts = layer_cuts(layers)
    # Without labels to compare, only what is shown is drawn.
    num = min(_ROWS, _ALL_ROWS // len(cuts)) if labels else _SHOWN
    panels = [
        _sample_rows(jax.random.fold_in(key, 2 * k + i), run, k, prior, labels, num)
        for k in cuts
        for i, prior in enumerate(_PRIORS)
    ]
    return Hierarchical(layers, tuple(panels))


def numbers(hierarchical: Hierarchical) -> dict[str, dict[str, dict[str, float]]]:
    """Returns the agreement of labels by "k=1", ... and prior; {} for no labels."""
    values: dict[str, dict[str, dict[str, float]]] = {}
    for rows in hierarchical.panels:
        if rows.agreement is not None:
            values.setdefault(f"k={rows.k}", {})[rows.prior] = rows.agreement
    return values


def draw(hierarchical: Hierarchical) -> Figure:
    """Draws a column per k, the tilted prior above and the Gaussian below."""
    columns = len(hierarchical.panels) // len(_PRIORS)
    figure, axes = subplots(len(_PRIORS), columns, (5.2 * columns, 10.8))
    for axis, rows in zip(axes.T.flat, hierarchical.panels, strict=True):
        images = rows.images.reshape(-1, *rows.images.shape[2:])
        show_grid(axis, images, columns=rows.images.shape[1])
        axis.set_title(_title(rows, hierarchical.layers), fontsize=10)
    return figure


def agreement_of(labels: np.ndarray) -> dict[str, float]:
    """Returns how often two of `labels` [rows, columns] agree, of one row and of any.

    Example:
      >>> agreement = agreement_of(np.array([[1, 1, 1], [2, 2, 3]]))
      >>> agreement["in_rows"]  # 3 of 3 pairs, and 1 of 3
      0.6666666666666666
    """

    def pairs(labels):
        counts = np.unique(labels, return_counts=True)[1]
        return np.sum(counts * (counts - 1)) / (labels.size * (labels.size - 1))

    return {
        "in_rows": float(np.mean([pairs(row) for row in labels])),
        "overall": float(pairs(labels)),
    }


def _sample_rows(key, run, k, prior, labels: Callable | None, num: int) -> Rows:
    """Draws z_{>k} for `num` rows, and the layers below for each image of a row."""
    key_above, key_below = jax.random.split(key)
    model, params, shape = run.model, run.params, (num, _COLUMNS)
    above = jebm.sample(key_above, model, params, num, prior=prior).latents[k:]
    above = jax.tree.map(lambda z: jnp.repeat(z, _COLUMNS, axis=0), above)
    x = jebm.sample(
        key_below, model, params, num * _COLUMNS, prior=prior, above=above
    ).x
    agreement = None
    if labels is not None:  # of a chain that has diverged, x is not finite
        agreement = agreement_of(labels(np.nan_to_num(x)).reshape(shape))
    images = np.asarray(x).reshape(*shape, *model.image_shape)
    return Rows(k, prior, images[:_SHOWN, :_SHOWN], agreement)


def _title(rows, layers):
    kept = ", ".join(f"z_{i + 1}" for i in range(rows.k, layers))
    if layers - rows.k > 4:
        kept = f"z_{rows.k + 1} to z_{layers}"
    title = f"{_PRIORS[rows.prior]} prior, {kept} kept"
    if rows.agreement is not None:
        title += (
            f"\nlabelled alike: {rows.agreement['in_rows']:.2f} of pairs in a row, "
            f"{rows.agreement['overall']:.2f} overall"
        )
    return title
