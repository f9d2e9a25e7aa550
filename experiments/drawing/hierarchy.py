"""What each layer holds."""

import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import jebm
from experiments import pictures
from experiments.data.pixels import to_unit
from experiments.drawing.chains import NUM_CHAINS
from experiments.drawing.common import save
from experiments.runtime.files import write_json
from jebm.chains import decode

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_HIERARCHICAL = (64, 16)  # z_{>k} kept, draws given each


def hierarchical(
    key, model, params, folder: pathlib.Path, labels: Callable | None
) -> pathlib.Path:
    """Keeps z_{>k} and draws the layers below anew: what does each layer hold?

    For each k below L, tilted prior above, Gaussian prior below; a row shares its
    z_{>k}. Where `labels` (images -> classes) tells classes, writes beside the picture
    how often two images of one row agree in theirs, and how often any two do.
    """
    layers = len(model.backbone.latent_shapes)
    priors, kept_from = ("ebm", "gaussian"), _cuts(layers)
    figure, axes = plt.subplots(
        2, len(kept_from), figsize=(5.2 * len(kept_from), 10.8), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    found = {}
    rows, columns = _HIERARCHICAL

    def repeat(z):
        return jnp.repeat(z, columns, axis=0)

    for column, k in enumerate(kept_from):
        for row, prior in enumerate(priors):
            key_above, key_below = jax.random.split(
                jax.random.fold_in(key, 2 * k + row)
            )
            kept = jebm.sample(key_above, model, params, rows, prior=prior).latents[k:]
            kept = jax.tree.map(repeat, kept)
            x = jebm.sample(
                key_below, model, params, rows * columns, prior=prior, above=kept
            ).x
            told = ""
            if labels is not None:
                agreement = agreement_of(
                    labels(np.nan_to_num(x)).reshape(rows, columns)
                )
                found.setdefault(f"k={k}", {})[prior] = agreement
                told = f"\nlabels agree: {agreement['in_rows']:.2f} in a row, "
                told += f"{agreement['overall']:.2f} overall"
            shown = x.reshape(rows, columns, *model.image_shape)[:8, :8]
            picture = pictures.grid(shown.reshape(64, *model.image_shape), columns=8)
            axis = axes[row, column]
            axis.imshow(np.asarray(picture), cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
            name = {"ebm": "tilted", "gaussian": "Gaussian"}[prior]
            kept_layers = ", ".join(f"z_{i + 1}" for i in range(k, layers))
            if layers - k > 4:
                kept_layers = f"z_{k + 1} to z_{layers}"
            axis.set_title(f"{name} prior, {kept_layers} kept{told}", fontsize=10)
    if found:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "hierarchical.json", found)
    return save(figure, folder / "hierarchical.png")


def agreement_of(labels: np.ndarray) -> dict[str, float]:
    """How often two of `labels` [rows, columns] agree, of one row and of any.

    Example:
      >>> found = agreement_of(np.array([[1, 1, 1], [2, 2, 3]]))
      >>> found["in_rows"]  # 3 of 3 pairs, and 1 of 3
      0.6666666666666666
    """

    def pairs(labels):
        counts = np.unique(labels, return_counts=True)[1]
        return np.sum(counts * (counts - 1)) / (labels.size * (labels.size - 1))

    return {
        "in_rows": float(np.mean([pairs(row) for row in labels])),
        "overall": float(pairs(labels)),
    }


def _cuts(layers: int) -> list[int]:
    """Up to four k, 1 <= k < layers, evenly spaced: z_{>k} is kept."""
    return sorted(set(np.linspace(1, layers - 1, 4).round().astype(int).tolist()))


def by_layer(key, model, params, images, folder: pathlib.Path) -> pathlib.Path:
    """Held-out images, decoded from ever fewer layers of their posterior.

    z_{>k} is that of the image, and the layers below are drawn from the prior given it.
    """
    key_posterior, key_prior = jax.random.split(key)
    x = to_unit(images[:NUM_CHAINS])
    latents = jebm.posterior_sample(key_posterior, model, params, jnp.asarray(x))
    columns = {"image": x, "all layers": decode(model, params, latents)}
    for k in _cuts(len(latents)):
        columns[f"z_{k + 1} up" if k + 1 < len(latents) else f"z_{k + 1}"] = (
            jebm.sample(key_prior, model, params, len(x), above=latents[k:]).x
        )
    figure, axes = plt.subplots(
        1, len(columns), figsize=(1.1 * len(columns), 7.6), layout="constrained"
    )
    for axis, (title, shown) in zip(axes, columns.items(), strict=True):
        picture = pictures.grid(np.asarray(shown), columns=1)
        axis.imshow(np.asarray(picture), cmap="gray", vmin=0, vmax=255)
        axis.set(xticks=[], yticks=[])
        axis.set_title(title, fontsize=9)
    figure.suptitle("Posterior of these layers, the rest drawn anew", fontsize=10)
    return save(figure, folder / "by_layer.png")
