"""Holds out one digit after the other, and measures how well scores separate it.

    python -m experiments.sweeps.anomaly --config=experiments/configs/mnist_anomaly.py
        --workdir=DIR [--digits=1,4,5,7,9] [--seeds=5] [--config.FIELD=VALUE ...]

All seeds of a digit are trained in one vmapped program, in DIR/DIGIT, and before it, of
two stages, their backbones in DIR/DIGIT/backbone; a killed run goes on from its last
checkpoint, and digits that are trained are not trained again. Of each seed's averaged
parameters at the end, DIR/DIGIT/anomaly.json gets the areas of
`experiments.evaluation.anomaly`, those of the Gaussian prior of the same generator too.
The table of the digits of this call is printed and written to DIR/anomaly.md: mean and
standard deviation over seeds; DIR/anomaly.png draws the AUPRC of four of its rows.
--digits and --seeds are instead of data.heldout_class and seed. Of two stages, the
Gaussian prior's score has the weights of eval.anomaly that are in the config of the
first.
"""

import pathlib
import sys
from typing import Any

import matplotlib
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags
from tqdm import tqdm

from experiments import command_line, options
from experiments.data import datasets
from experiments.errors import USER_ERRORS, ConfigError
from experiments.evaluation.anomaly import Anomaly
from experiments.evaluation.anomaly_score import detection
from experiments.evaluation.registry import create
from experiments.models import build_model, stage_one, stages
from experiments.options import Experiment
from experiments.runs import Run
from experiments.runtime.files import local_path, write_json, write_text
from experiments.streams import Stream
from experiments.sweeps.vmapped import VmappedRun, as_run, of_run, train_vmapped

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Rows of the table: the name of the row, and what its fields end with. Cells of a table
# have no bar: log p(x; z) is of x given z.
_ROWS = {
    "score": "",
    "score, without neighbours and volume": "_absolute",
    "score(0)": "_unweighed",
    "log p(x; z)": "_likelihood",
    "log p_beta(z) - E(z)": "_prior",
    "-E(z)": "_energy",
    "-distance to the nearest": "_distance",
    "Gaussian prior, score": "_gaussian",
    "Gaussian prior, without neighbours and volume": "_gaussian_absolute",
    "Gaussian prior, score(0)": "_gaussian_unweighed",
}


def main(argv: list[str]) -> None:
    """Trains and scores every digit."""
    del argv  # its flags are parsed, and it may hold nothing else
    logging.set_verbosity(logging.WARNING)
    given = flags.FLAGS
    try:
        path = local_path("workdir", given.workdir)
        digits = parse_digits(given.digits)
        config = given.config.to_dict()
        experiments = {digit: heldout(config, digit) for digit in digits}
        for experiment in experiments.values():
            check(experiment)
        results = {
            digit: run(experiment, path / str(digit), given.seeds)
            for digit, experiment in experiments.items()
        }
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    lines = "\n".join(table(results)) + "\n"
    write_text(path / "anomaly.md", lines)
    draw(results, path / "anomaly.png")
    print(f"{lines}\nwrote {path / 'anomaly.md'} and {path / 'anomaly.png'}")


def heldout(config: dict[str, Any], digit: int) -> Experiment:
    """Returns the experiment of a config with `digit` held out."""
    data = config["data"] | {"heldout_class": digit}
    evaluation = config["eval"] | {"protocol": "anomaly"}
    return options.read({**config, "data": data, "eval": evaluation})


def check(experiment: Experiment) -> None:
    """Refuses, before any training, what cannot be trained or scored."""
    checkpoint = experiment.backbone.get("checkpoint")
    if checkpoint is not None:
        raise ConfigError(
            "backbone.checkpoint must be None, as every seed of every digit has its "
            f"own, got {checkpoint!r}"
        )
    for stage in stages(experiment):
        create(stage)
    training = datasets.load(experiment.data)["train"].images
    evaluator_of(experiment).check_neighbours(training)


def evaluator_of(experiment: Experiment) -> Anomaly:
    """Returns the evaluator of its anomalies."""
    return Anomaly.of(experiment.eval.evaluators["anomaly"])


def run(experiment: Experiment, path: pathlib.Path, seeds: int) -> list[dict]:
    """Returns the areas of each seed, which is trained in `path` if not there yet."""
    splits = datasets.load(experiment.data)
    images = splits["train"].images
    runs = [VmappedRun(images, seed, {}) for seed in range(seeds)]
    names = list(range(seeds))
    *before, _ = stages(experiment)
    for first in before:
        generator = build_model(first, images.shape[1:])
        state, _ = train_vmapped(
            first, path / "backbone", generator, runs, names, splits
        )
        backbones = state.learner.ema.backbone
        runs = [r._replace(backbone=of_run(backbones, r.seed)) for r in runs]
    model = build_model(experiment, images.shape[1:])
    state, history = train_vmapped(experiment, path, model, runs, names, splits)
    digit, results = experiment.data.heldout_class, []
    scored = dict(experiment.eval.evaluators["anomaly"])
    scored["num_posterior_samples"] = experiment.eval.num_posterior_samples
    for seed in tqdm(names, desc=f"scoring, {digit} held out", disable=None):
        trained = as_run(experiment, path, model, state, seed, seed, splits)
        about = {"digit": digit, "seed": seed, "scored": scored}
        results.append(about | history.of_run(seed) | areas(trained))
    write_json(path / "anomaly.json", results)
    return results


def areas(run: Run) -> dict[str, float]:
    """Returns the areas of `detection`, with and without the generator's energy.

    The generator is that of the Gaussian prior itself where it has learned as such, in
    a first stage, whose weights then are those of its score, or with
    `learning.energy_grad_scale` = 0.
    """
    evaluator, experiment = evaluator_of(run.experiment), run.experiment
    anomalous = run.splits["test"].labels == experiment.data.heldout_class
    terms = evaluator.terms(run.key(Stream.EVALUATION), run)
    untilted = terms._replace(
        moved=terms.moved._replace(energy=np.zeros_like(terms.moved.energy)),
        nearest=terms.nearest._replace(energy=np.zeros_like(terms.nearest.energy)),
    )
    weights = evaluator.weights
    numbers = detection(terms, anomalous, weights)
    if experiment.learning.method == "two_stage":
        weights = evaluator_of(stage_one(experiment)).weights
    gaussian = detection(untilted, anomalous, weights)
    return numbers | {
        f"{measure}_gaussian{suffix}": gaussian[measure + suffix]
        for measure in ("auprc", "auroc")
        for suffix in ("", "_absolute", "_unweighed")
    }


def table(results: dict[int, list[dict]]) -> list[str]:
    """Formats Markdown: rows are scores, columns digits, mean ± standard deviation."""
    lines = [
        "| | " + " | ".join(f"{digit}" for digit in results) + " |",
        "|---" * (len(results) + 1) + "|",
    ]
    one = next(iter(results.values()))[0]
    for row, suffix in _ROWS.items():
        if f"auprc{suffix}" not in one:
            continue
        for measure in ("auprc", "auroc"):
            cells = [f"{row}, {measure.upper()}"]
            for each in results.values():
                values = [result[measure + suffix] for result in each]
                cells.append(f"{np.mean(values):.3f} ± {np.std(values):.3f}")
            lines.append("| " + " | ".join(cells) + " |")
    chance = [f"{each[0]['prevalence']:.3f}" for each in results.values()]
    lines.append("| prevalence | " + " | ".join(chance) + " |")
    scored = ", ".join(f"{name}={value}" for name, value in one["scored"].items())
    return [*lines, "", f"Scored with eval.anomaly: {scored}."]


def draw(results: dict[int, list[dict]], file: pathlib.Path) -> None:
    """Draws bars of the AUPRC by digit, their deviation over seeds, and chance's."""
    one = next(iter(results.values()))[0]
    drawn = ("", "_prior", "_distance", "_gaussian")
    rows = [row for row, s in _ROWS.items() if s in drawn and f"auprc{s}" in one]
    figure, axis = plt.subplots(figsize=(3 + len(results), 3.5), layout="constrained")
    places, width = np.arange(len(results)), 0.8 / len(rows)
    for i, row in enumerate(rows):
        values = np.array(
            [[r[f"auprc{_ROWS[row]}"] for r in each] for each in results.values()]
        )
        axis.bar(
            places + (i - (len(rows) - 1) / 2) * width,
            values.mean(axis=1),
            width,
            yerr=values.std(axis=1),
            label=row,
            color=plt.cm.viridis(i / len(rows)),
        )
    chance = [each[0]["prevalence"] for each in results.values()]
    axis.hlines(chance, places - 0.4, places + 0.4, "black", "dotted", label="chance")
    axis.set(xlabel="digit held out", ylabel="AUPRC, mean ± deviation", ylim=(0, 1))
    axis.set_xticks(places, [str(digit) for digit in results])
    figure.legend(loc="outside right upper", fontsize=8)
    figure.savefig(file, dpi=150)
    plt.close(figure)


def parse_digits(text: str) -> list[int]:
    """Reads --digits.

    Example:
      >>> parse_digits("1,4")
      [1, 4]
    """
    try:
        digits = [int(digit) for digit in text.split(",")]
    except ValueError:
        raise ConfigError(f"--digits: {text!r} is not a list of integers") from None
    if len(set(digits)) < len(digits):
        raise ConfigError(f"--digits: {text!r} names a digit twice")
    return digits


def _define_flags():
    """Defines the flags; only the program calls it, as no two may define the same."""
    config_flags.DEFINE_config_file("config", lock_config=True)
    flags.DEFINE_string("workdir", None, "Where to write.", required=True)
    flags.DEFINE_string("digits", "1,4,5,7,9", "Digits to hold out, one at a time.")
    flags.DEFINE_integer("seeds", 5, "Seeds 0 .. N-1 of each digit.", lower_bound=1)


if __name__ == "__main__":
    _define_flags()
    app.run(main, flags_parser=command_line.parse)
