"""Measures what each convention of published anomaly tables is worth, on one model.

    python -m experiments.main --config=experiments/configs/mnist_anomaly.py
        --config.data.heldout_class=4 --workdir=runs/without4
        --config.log.checkpoint_every=300 --config.log.keep=10
    python -m tools.verify.conventions runs/without4 [RUN ...] --out=runs/conventions

Each RUN holds out a class. Its areas are measured anew by every convention, with the
weights of its own eval.anomaly, and of score(0) with the likelihood's weight
w = eval.anomaly.likelihood_weight:

- clean: no test image is one of training, and the last parameters are tested;
- another permutation: the normal test images are drawn again from all of them, so that
  most are images of training;
- a tenth: so few anomalies that they are a tenth of the test images, as in the test set
  of MNIST;
- mean of checkpoints: the mean of the areas of all checkpoints that the run has kept;
- best checkpoint: the largest of these areas, chosen on the test images;
- best w: the likelihood's weight of the largest area, chosen on the test images.

It prints the tables and writes them to DIR/conventions.md, and all areas to
DIR/conventions.json.
"""

import argparse
import dataclasses
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

import jebm
from experiments import options
from experiments.data.loaders import Split
from experiments.errors import USER_ERRORS, ConfigError
from experiments.evaluation.anomaly import Anomaly
from experiments.evaluation.anomaly_score import (
    Terms,
    Weights,
    areas,
    as_they_are,
    log_density,
    score,
)
from experiments.rundir.settings import read_settings
from experiments.runs import Run, open_run
from experiments.runtime.files import write_json, write_text
from experiments.streams import Stream
from jebm import checkpoints
from tools.arguments import path_argument

WEIGHTS = (0.0, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
CONVENTIONS = (
    "clean",
    "another permutation",
    "a tenth",
    "mean of checkpoints",
    "best checkpoint",
    "best w",
)
SCORES = ("score", "score(0) of weight w")

Areas = dict[str, tuple[float, float]]  # AUPRC and AUROC by the name of the score


def measure(path: pathlib.Path) -> dict[str, Areas]:
    """Returns AUPRC and AUROC of the scores of a run, by convention.

    Raises:
      ConfigError: if the run holds out no class, or kept a single checkpoint.
    """
    run = open_run(options.read(read_settings(path)), path)
    steps = checkpoints.steps(path)
    if run.experiment.data.heldout_class is None or len(steps) < 2:
        raise ConfigError(
            f"{path} must be a run with a data.heldout_class and several checkpoints, "
            f"got {run.experiment.data.heldout_class} and steps {steps}"
        )
    evaluator = Anomaly.of(run.experiment.eval.evaluators["anomaly"])
    evaluator.check(run.experiment)
    weights = evaluator.weights
    kind = kinds(run)
    ours = np.flatnonzero(~kind.trained)

    key = run.key(Stream.EVALUATION)
    terms = evaluator.terms(key, dataclasses.replace(run, splits=kind.splits))
    clean = of_images(terms, ours)
    anomalous = kind.anomalous[ours]
    each = [of_checkpoint(run, evaluator, step, anomalous) for step in steps[:-1]]
    each.append(both(clean, anomalous, weights))
    by_weight = [
        both(clean, anomalous, weights._replace(likelihood=w)) for w in WEIGHTS
    ]

    def chosen(index):
        return both(of_images(terms, index), kind.anomalous[index], weights)

    draw = np.random.default_rng(0)
    return {
        "clean": each[-1],
        "another permutation": chosen(drawn_again(draw, kind)),
        "a tenth": chosen(a_tenth(draw, kind)),
        "mean of checkpoints": {
            name: tuple(np.mean([one[name] for one in each], axis=0).tolist())
            for name in SCORES
        },
        "best checkpoint": {name: max(one[name] for one in each) for name in SCORES},
        "best w": {name: max(one[name] for one in by_weight) for name in SCORES},
    }


@dataclasses.dataclass(frozen=True)
class Kinds:
    """The test images, and as many normal ones of training as another draw would have.

    Attributes:
      splits: of the run; its test split has the images of training at its end.
      anomalous: whether each is of the held-out class, bool [N].
      trained: whether each is of training, bool [N].
    """

    splits: dict[str, Split]
    anomalous: np.ndarray
    trained: np.ndarray


def kinds(run: Run) -> Kinds:
    """Joins images of training to those of the test."""
    train, test = run.splits["train"], run.splits["test"]
    anomalous = test.labels == run.experiment.data.heldout_class
    normal = int((~anomalous).sum())
    share = len(train.labels) / (len(train.labels) + normal)
    some = np.sort(
        np.random.default_rng(0).permutation(len(train.labels))[: round(share * normal)]
    )
    joined = Split(
        np.concatenate([test.images[:], run.training[some]]),
        np.concatenate([test.labels, train.labels[some]]),
    )
    return Kinds(
        {"train": train, "test": joined},
        np.concatenate([anomalous, np.zeros(len(some), bool)]),
        np.arange(len(joined.labels)) >= len(test.labels),
    )


def drawn_again(draw: np.random.Generator, kind: Kinds) -> np.ndarray:
    """Returns all anomalies, and as many normal images as the clean test has.

    Those of training are in it by their share of all normal images.
    """
    fresh = np.flatnonzero(~kind.anomalous & ~kind.trained)
    trained = np.flatnonzero(kind.trained)
    kept = draw.permutation(fresh)[: len(fresh) - len(trained)]
    return np.concatenate([np.flatnonzero(kind.anomalous), kept, trained])


def a_tenth(draw: np.random.Generator, kind: Kinds) -> np.ndarray:
    """Returns the test images with so few anomalies that they are a tenth of them."""
    normal = np.flatnonzero(~kind.anomalous & ~kind.trained)
    anomalous = draw.permutation(np.flatnonzero(kind.anomalous))
    return np.concatenate([normal, anomalous[: len(normal) // 9]])


def of_images(terms: Terms, index: np.ndarray) -> Terms:
    """Returns the terms of some of the images."""
    return Terms(
        jax.tree.map(lambda t: t[:, index], terms.moved),
        jax.tree.map(lambda t: t[index], terms.nearest),
        terms.knn_log_volume[index],
    )


def of_checkpoint(
    run: Run, evaluator: Anomaly, step: int, anomalous: np.ndarray
) -> Areas:
    """Returns the areas of an earlier checkpoint, on the clean test images."""
    template = jax.eval_shape(jebm.init, jax.random.key(0), run.model)
    _, items = checkpoints.restore(run.path, {"ema": template}, step)
    params = jax.tree.map(jnp.asarray, items["ema"])
    earlier = dataclasses.replace(run, params=params, step=step)
    terms = evaluator.terms(run.key(Stream.EVALUATION), earlier)
    return both(terms, anomalous, evaluator.weights)


def both(terms: Terms, anomalous: np.ndarray, weights: Weights) -> Areas:
    """Returns the areas of the score, and of score(0) with the likelihood weighed."""
    plain = log_density(as_they_are(terms), weights.likelihood)
    values = (-score(terms, weights), -plain)
    return {
        name: areas(anomalous, value)
        for name, value in zip(SCORES, values, strict=True)
    }


def table(found: dict[str, dict[str, Areas]], name: str) -> list[str]:
    """Returns lines of Markdown: a row per convention, a column per run.

    Example:
      >>> found = {"without 4": {c: {"score": (0.9, 0.95)} for c in CONVENTIONS}}
      >>> print(*table(found, "score")[:3], sep=chr(10))
      | score, AUPRC (AUROC) | without 4 |
      |---|---|
      | clean | .900 (.950) |
    """
    lines = [
        f"| {name}, AUPRC (AUROC) | " + " | ".join(found) + " |",
        "|---" * (len(found) + 1) + "|",
    ]
    for convention in CONVENTIONS:
        cells = [
            f"{auprc:.3f} ({auroc:.3f})".replace("0.", ".")
            for auprc, auroc in (each[convention][name] for each in found.values())
        ]
        lines.append(f"| {convention} | " + " | ".join(cells) + " |")
    return lines


def main(argv: list[str]) -> None:
    """Reads the command line and measures every run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=path_argument, metavar="RUN")
    parser.add_argument("--out", required=True, type=path_argument, metavar="DIR")
    given = parser.parse_args(argv)
    try:
        found = {path.name: measure(path) for path in given.runs}
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    given.out.mkdir(parents=True, exist_ok=True)
    lines = [line for name in SCORES for line in (*table(found, name), "")]
    write_json(given.out / "conventions.json", found)
    write_text(given.out / "conventions.md", "\n".join(lines))
    print("\n".join(lines) + f"\nwrote {given.out / 'conventions.md'}")


if __name__ == "__main__":
    main(sys.argv[1:])
