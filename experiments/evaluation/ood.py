"""Out-of-distribution detection: which scores tell images of elsewhere.

Every score(k) and LLR^{>k} of `jebm.scores` is a statistic, signed so that high means
elsewhere: minus score(k), and LLR^{>k} itself. One of them is chosen, once, on outliers
that the table does not hold (`eval.ood.chosen_on`): the one of the largest AUROC.
"""

import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from PIL import Image
from sklearn import metrics

import jebm
from experiments.data import loaders
from experiments.data.pixels import to_unit
from experiments.errors import ConfigError
from experiments.runtime.batching import map_batches
from jebm.names import unknown_name_message

matplotlib.use("Agg")
import matplotlib.pyplot as plt

INSIDE, OUTSIDE = "#0072B2", "#E69F00"  # colour-blind-safe


def outliers(
    name: str, images: np.ndarray, data_dir: str | None, made_up: bool = False
) -> np.ndarray:
    """As many images of elsewhere as there are `images`, and of their shape.

    Args:
      name: a key of `MADE` or of `loaders.LOADERS`, whose held-out images are then
        converted to grey or RGB and scaled with antialiasing.
      images: held-out images of the data set itself, uint8 [N, H, W, C].
      data_dir: where prepared data lies.
      made_up: takes images in the shape of a data set for those of the set itself.

    Raises:
      ConfigError: for data that is not prepared.

    Example:
      >>> images = np.arange(32, dtype=np.uint8).reshape(2, 4, 4, 1)
      >>> outliers("inverted", images, None)[0, 0, :, 0]
      array([255, 254, 253, 252], dtype=uint8)
    """
    if name in MADE:
        return MADE[name](images)
    options, loader = loaders.Options(data_dir, fake_like=name), name
    if made_up and name in loaders.SHAPES:
        loader = "fake"
    others = loaders.LOADERS[loader](options)["test"].images
    height, width, channels = images.shape[1:]
    mode = "L" if channels == 1 else "RGB"
    converted = [
        Image.fromarray(np.squeeze(other, -1) if other.shape[-1] == 1 else other)
        .convert(mode)
        .resize((width, height), Image.Resampling.LANCZOS)
        for other in others[: len(images)]
    ]
    stacked = np.stack([np.asarray(image) for image in converted])
    return stacked.reshape(-1, *images.shape[1:])


def check(options) -> None:
    """Refuses outliers of config.eval that are unknown or would choose for themselves.

    Raises:
      ConfigError: naming the field.
    """
    known = sorted((MADE | loaders.LOADERS).keys() - {"folder", "fake"})
    asked = [("ood_chosen_on", options.ood_chosen_on)]
    asked += [("ood_outliers", name) for name in options.ood_outliers]
    for field, name in asked:
        if name not in known:
            raise ConfigError(unknown_name_message(f"eval.{field}", name, known))
    if not options.ood_outliers or options.ood_chosen_on in options.ood_outliers:
        raise ConfigError(
            "eval.ood.outliers must name sets other than eval.ood.chosen_on, got "
            f"{options.ood_outliers} and {options.ood_chosen_on!r}"
        )


def _noise(images):
    """Every value uniform in 0..255."""
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, images.shape, np.uint8)


def _constant(images):
    """One value each, evenly from 0 to 255."""
    levels = np.linspace(0, 255, len(images)).round().astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], images.shape)


def _rotated(images):
    """A quarter turn."""
    if images.shape[1] != images.shape[2]:
        raise ConfigError(f"outliers 'rotated' needs squares, got {images.shape[1:3]}")
    return np.rot90(images, axes=(1, 2))


def _exchanged(images):
    """Each quarter in the place of the one across."""
    return np.roll(images, (images.shape[1] // 2, images.shape[2] // 2), axis=(1, 2))


MADE = {
    "noise": _noise,
    "inverted": lambda images: 255 - images,
    "rotated": _rotated,
    "constant": _constant,
    "exchanged": _exchanged,
}


def scores_of(key, model, params, images: np.ndarray, options) -> tuple:
    """score(k) of images, for every k: a tuple of [N].

    Args:
      key: typed key.
      model: the model.
      params: its parameters.
      images: uint8, or float32 in [0, 1], [N, H, W, C].
      options: config.eval.
    """
    num = options.num_posterior_samples

    def draw(key, indices):
        x = jnp.asarray(images[indices])
        x = to_unit(x) if x.dtype == jnp.uint8 else x
        return tuple(
            jebm.scores.score(key, model, params, x, k, num_samples=num)
            for k in range(len(model.backbone.latent_shapes))
        )

    batch_size = min(options.batch_size, len(images))
    return map_batches(key, draw, np.arange(len(images)), batch_size)


def statistics(scores: tuple) -> dict[str, np.ndarray]:
    """By name, what is high for images of elsewhere.

    Example:
      >>> {k: v.item() for k, v in statistics((np.array(3.0), np.array(1.0))).items()}
      {'-score(0)': -3.0, '-score(1)': -1.0, 'LLR>1': 2.0}
    """
    found = {f"-score({k})": -score for k, score in enumerate(scores)}
    return found | {f"LLR>{k}": scores[0] - scores[k] for k in range(1, len(scores))}


def areas(inside: np.ndarray, outside: np.ndarray) -> dict[str, float]:
    """AUROC, AUPRC (average precision) and FPR80; what is outside is positive.

    FPR80 is the false-positive rate where four of five positives are found.

    Example:
      >>> areas(np.array([0.0, 1.0, 2.0, 3.0]), np.array([2.5, 4.0, 5.0, 6.0]))
      {'auroc': 0.9375, 'auprc': 0.95, 'fpr80': 0.25}
    """
    labels = np.repeat([0, 1], [len(inside), len(outside)])
    values = np.concatenate([inside, outside])
    false, true, _ = metrics.roc_curve(labels, values, drop_intermediate=False)
    return {
        "auroc": float(metrics.roc_auc_score(labels, values)),
        "auprc": float(metrics.average_precision_score(labels, values)),
        "fpr80": float(false[np.argmax(true >= 0.8)]),
    }


def detection(key, config, model, params, images: np.ndarray, folder: pathlib.Path):
    """Scores held-out images and all outliers, and draws their histograms.

    Returns:
      For each outlier set NAME the lists auroc_NAME, auprc_NAME and fpr80_NAME over
      "statistics"; "chosen", the statistic chosen on `eval.ood.chosen_on`, and its
      numbers chosen_auroc_NAME, chosen_auprc_NAME and chosen_fpr80_NAME.
    """
    options = config.eval
    images = images[: options.num_samples]
    names = (options.ood_chosen_on, *options.ood_outliers)
    made_up = config.data.name == "fake"
    sets = {n: outliers(n, images, config.data.data_dir, made_up) for n in names}
    num = min(map(len, sets.values()))  # of each alike
    sets = {"": images} | sets
    scored = {}
    for i, (name, members) in enumerate(sets.items()):
        key_set = jax.random.fold_in(key, i)
        scored[name] = statistics(
            scores_of(key_set, model, params, members[:num], options)
        )
    inside = scored.pop("")
    found = {
        name: [areas(inside[s], outside[s]) for s in inside]
        for name, outside in scored.items()
    }
    auroc = [table["auroc"] for table in found[options.ood_chosen_on]]
    chosen = int(np.argmax(auroc))
    flat = {
        f"{measure}_{name}": [table[measure] for table in tables]
        for name, tables in found.items()
        for measure in tables[0]
    }
    flat |= {
        f"chosen_{measure}_{name}": value
        for name in options.ood_outliers
        for measure, value in found[name][chosen].items()
    }
    histograms(inside, scored, chosen, folder / "ood.png")
    return flat, {
        "statistics": list(inside),
        "chosen": list(inside)[chosen],
        "chosen_on": options.ood_chosen_on,
        "outliers": list(options.ood_outliers),
        "num_inside": num,
        "num_outside": num,
        "num_posterior_samples": options.num_posterior_samples,
    }


def histograms(
    inside: dict, outside: dict[str, dict], chosen: int, file: pathlib.Path
) -> None:
    """Draws every statistic (columns) of every outlier set (rows) over the inliers'."""
    rows, columns = len(outside), len(inside)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.6 * columns, 1.6 * rows + 0.6), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for i, (axis, statistic) in enumerate(zip(axes[0], inside, strict=True)):
        axis.set_title(statistic + (" (chosen)" if i == chosen else ""), fontsize=10)
    for row, (name, found) in zip(axes, outside.items(), strict=True):
        row[0].set_ylabel(name, fontsize=9)
        for axis, statistic in zip(row, inside, strict=True):
            values = np.concatenate([inside[statistic], found[statistic]])
            # Some statistics lie decades apart; around zero the axis is linear.
            unit = max(float(np.std(inside[statistic])), 1e-6)
            centre = float(np.median(inside[statistic]))
            scaled = np.arcsinh((values - centre) / unit)
            bins = np.linspace(scaled.min(), scaled.max(), 50)
            num = len(inside[statistic])
            for part, colour in ((scaled[:num], INSIDE), (scaled[num:], OUTSIDE)):
                axis.hist(part, bins, density=True, alpha=0.6, color=colour)
            ticks = np.linspace(bins[0], bins[-1], 3)
            labels = [f"{centre + unit * np.sinh(t):.3g}" for t in ticks]
            axis.set_xticks(ticks, labels, fontsize=7)
            axis.set_yticks([])
    figure.suptitle(
        "Images of the data set (blue) and from elsewhere (orange), nats, axes "
        "compressed away from the former",
        fontsize=10,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)
