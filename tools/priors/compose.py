"""Adds two energies that learned separately: one of a class, one of thick strokes.

    python -m tools.priors.compose --backbone=RUN --workdir=DIR [--minutes=1] \\
        [--label=3] [--ink=0.3]

Three joint EBM priors learn on one frozen generator: from images of class --label, from
the share --ink of all images with the most ink, and from all images. The tool adds them
with weights 1, 1, -1 and samples from the sum. DIR gets compose.json, compose.md and
compose.png: how often samples of each energy alone and of the sum show the class, by a
classifier, and how often they have the ink.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments import pictures
from experiments.data.pixels import to_unit
from experiments.errors import ConfigError
from experiments.evaluation import classifier
from experiments.runtime.files import write_json, write_text
from jebm import priors
from tools.arguments import of_backbone, positive
from tools.priors import learn, measure, settings
from tools.priors.backbone import open_backbone

_NUM_SAMPLES = 1000
_TITLES = {
    "gaussian": "Gaussian prior",
    "all": "energy of all images",
    "class": "energy of the class",
    "ink": "energy of the ink",
    "sum": "sum of the two",
    "composed": "sum of the two, less that of all images",
}


def main() -> None:
    """Runs the command."""
    parser = of_backbone("python -m tools.priors.compose", __doc__)
    parser.add_argument(
        "--minutes", type=positive, default=1.0, help="training time of each energy"
    )
    parser.add_argument(
        "--label", type=int, default=3, help="class of the first energy"
    )
    parser.add_argument(
        "--ink", type=positive, default=0.3, help="share of images with thick strokes"
    )
    arguments = parser.parse_args()
    if arguments.ink >= 1:
        parser.error(f"--ink must be below 1, got {arguments.ink:g}")
    try:
        run = open_backbone(arguments.backbone)
        predict = classifier.labels(run.experiment.data.name)
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from None
    of_label = _of_label(run, arguments.label)  # before any work
    frozen = priors.freeze(run.model, run.params)
    chosen = settings.backbone(frozen)
    eps = measure.encode(jax.random.key(1), frozen, run.training, chosen.passes)
    data = learn.Data(jnp.asarray(eps), jnp.asarray(run.training))
    ink = to_unit(run.training).mean(axis=(1, 2, 3))
    threshold = float(np.quantile(ink, 1 - arguments.ink))
    subsets = {
        "all": np.ones(len(ink), bool),
        "class": of_label,
        "ink": ink > threshold,
    }
    laws = {"gaussian": priors.Law(priors.Gaussian(), frozen, ())}
    for name, keep in subsets.items():
        laws[name], _ = learn.learn(
            name, settings.prior("joint", frozen), frozen, data.without(keep), seed=0,
            seconds=60 * arguments.minutes, batch_size=chosen.batch_size,
            path=arguments.workdir / name,
        )  # fmt: skip
    laws["sum"] = priors.product([laws["class"], laws["ink"]])
    laws["composed"] = priors.product(
        [laws["class"], laws["ink"], laws["all"]], [1.0, 1.0, -1.0]
    )
    found, grids = {}, {}
    for name, law in laws.items():
        images, _ = measure.draw(
            jax.random.key(2), law, _NUM_SAMPLES, chosen.sample_batch
        )
        is_label = predict(images) == arguments.label
        is_inky = images.mean(axis=(1, 2, 3)) > threshold
        found[name] = {
            "class": float(is_label.mean()),
            "ink": float(is_inky.mean()),
            "both": float((is_label & is_inky).mean()),
        }
        grids[name] = images[:36]
    _write(arguments.workdir, arguments, found, grids)
    print(f"Look at {arguments.workdir / 'compose.md'}")


def _of_label(run, label):
    keep = run.splits["train"].labels == label
    if not keep.any():
        raise SystemExit(f"error: --label must be a class of the run, got {label}")
    return keep


def _write(workdir: pathlib.Path, arguments, found, grids) -> None:
    write_json(workdir / "compose.json", found)
    lines = [
        f"Shares of {_NUM_SAMPLES} samples that a classifier sees as class "
        f"{arguments.label}, that have as much ink as the upper {arguments.ink:.0%} of "
        "the images of training, and both.",
        "",
        "| samples of | class | ink | both |",
        "| --- | --- | --- | --- |",
    ]
    for name, shares in found.items():
        cells = " | ".join(f"{shares[key]:.3f}" for key in ("class", "ink", "both"))
        lines.append(f"| {_TITLES[name]} | {cells} |")
    write_text(workdir / "compose.md", "\n".join(lines) + "\n")
    shown = ("class", "ink", "composed")
    rows = [
        np.concatenate([grids[n][6 * r : 6 * r + 6] for n in shown]) for r in range(6)
    ]
    caption = (
        "Left: energy of the class. Middle: energy of the ink. Right: both, less the "
        "energy of all images."
    )
    pictures.save(
        pictures.grid(np.concatenate(rows), columns=18),
        workdir / "compose.png",
        caption,
    )


if __name__ == "__main__":
    main()
