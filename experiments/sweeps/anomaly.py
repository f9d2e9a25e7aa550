"""Holds out one digit after the other: how well do scores tell it?

    python -m experiments.sweeps.anomaly --config=experiments/configs/mnist_anomaly.py
        --workdir=DIR [--digits=1,4,5,7,9] [--seeds=5] [--config.FIELD=VALUE ...]

All seeds of a digit are trained in one vmapped program, in DIR/DIGIT, and before it, of
two stages, their backbones in DIR/DIGIT/backbone; a killed run goes on from its last
checkpoint, and digits that are trained are not trained again. Of each seed's
averaged parameters at the end, DIR/DIGIT/anomaly.json gets the areas of
`experiments.evaluation.anomaly`, those of the Gaussian prior of the same generator
too. The table of the digits of this call is printed and written to DIR/anomaly.md: mean and standard
deviation over seeds; DIR/anomaly.png draws the AUPRC of four of its rows. --digits and
--seeds are instead of data.heldout_digit and seed. Of two stages, the Gaussian prior's
score has the weights of eval.anomaly that are in the config of the first.
"""

import pathlib
import sys

import jax
import matplotlib
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags
from tqdm import tqdm

from experiments import command_line
from experiments.data import datasets
from experiments.errors import USER_ERRORS, ConfigError
from experiments.evaluation import anomaly, evaluate
from experiments.models import build_model
from experiments.runs import check_log
from experiments.runtime.files import write_json, write_text
from experiments.stages import stage_one
from experiments.streams import Role
from experiments.sweeps.vmapped import Lane, of_lane, train_lanes
from experiments.training.checks import check_learning

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
    path = pathlib.Path(given.workdir)
    try:
        digits = parse_digits(given.digits)
        for digit in digits:
            check(given.config, digit)
        found = {
            digit: run(given.config, path / str(digit), digit, given.seeds)
            for digit in digits
        }
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    lines = "\n".join(table(found)) + "\n"
    write_text(path / "anomaly.md", lines)
    draw(found, path / "anomaly.png")
    print(f"{lines}\nwrote {path / 'anomaly.md'} and {path / 'anomaly.png'}")


def run(config, path: pathlib.Path, digit: int, seeds: int) -> list[dict]:
    """Areas of each seed with `digit` held out, trained in `path` if not there yet."""
    config, splits = check(config, digit)
    images = splits["train"].images
    lanes = [Lane(images, seed, {}) for seed in range(seeds)]
    model = build_model(config, images.shape[1:])
    if config.learning.method == "two_stage":
        first = stage_one(config)
        _check(first)
        generator = build_model(first, images.shape[1:])
        backbone = path / "backbone"
        state, _ = train_lanes(first, backbone, generator, lanes, list(range(seeds)))
        lanes = [
            lane._replace(backbone=of_lane(state.learner.ema.backbone, lane.seed))
            for lane in lanes
        ]
    state, history = train_lanes(config, path, model, lanes, list(range(seeds)))
    scored = dict(config.eval.anomaly)
    scored["num_posterior_samples"] = config.eval.num_posterior_samples
    results = []
    for seed in tqdm(range(seeds), desc=f"scoring, {digit} held out", disable=None):
        key = jax.random.fold_in(jax.random.key(seed), Role.EVALUATION)
        ema = of_lane(state.learner.ema, seed)
        found = areas(key, config, model, ema, splits, digit)
        about = {"digit": digit, "seed": seed, "scored": scored}
        results.append(about | history.lane(seed) | found)
    write_json(path / "anomaly.json", results)
    return results


def check(config, digit: int):
    """The configuration with `digit` held out, and its data; refuses what cannot be."""
    config = config.copy_and_resolve_references()
    config.data.heldout_digit = digit
    config.eval.protocol = "anomaly"
    _check(config)
    splits = datasets.load(**config.data)
    anomaly.check_neighbours(config.eval, splits["train"].images)
    return config, splits


def _check(config):
    check_learning(config)
    check_log(config)
    evaluate.check_eval(config)
    if config.backbone.get("checkpoint") is not None:
        raise ConfigError(
            "backbone.checkpoint must be None, as every seed of every digit has its "
            f"own, got {config.backbone.checkpoint!r}"
        )


def areas(key, config, model, params, splits, digit: int) -> dict[str, float]:
    """Those of `anomaly.detection`, and of the same generator without its energy.

    The generator is that of the Gaussian prior itself where it has learned as such, in
    a first stage, whose weights then are those of its score, or with
    `learning.energy_share` = 0.
    """
    images, training = splits["test"].images, splits["train"].images
    anomalous = splits["test"].labels == digit
    terms = anomaly.terms_of(key, model, params, images, training, config.eval)
    untilted = terms._replace(
        moved=terms.moved._replace(energy=np.zeros_like(terms.moved.energy)),
        nearest=terms.nearest._replace(energy=np.zeros_like(terms.nearest.energy)),
    )
    weights = anomaly.weights_of(config.eval)
    found = anomaly.detection(terms, anomalous, weights)
    if config.learning.method == "two_stage":
        weights = anomaly.weights_of(stage_one(config).eval)
    gaussian = anomaly.detection(untilted, anomalous, weights)
    return found | {
        f"{measure}_gaussian{suffix}": gaussian[measure + suffix]
        for measure in ("auprc", "auroc")
        for suffix in ("", "_absolute", "_unweighed")
    }


def table(found: dict[int, list[dict]]) -> list[str]:
    """Markdown: a row per score, a column per digit, mean ± standard deviation."""
    lines = [
        "| | " + " | ".join(f"{digit}" for digit in found) + " |",
        "|---" * (len(found) + 1) + "|",
    ]
    one = next(iter(found.values()))[0]
    for row, suffix in _ROWS.items():
        if f"auprc{suffix}" not in one:
            continue
        for measure in ("auprc", "auroc"):
            cells = [f"{row}, {measure.upper()}"]
            for results in found.values():
                values = [result[measure + suffix] for result in results]
                cells.append(f"{np.mean(values):.3f} ± {np.std(values):.3f}")
            lines.append("| " + " | ".join(cells) + " |")
    chance = [f"{results[0]['prevalence']:.3f}" for results in found.values()]
    lines.append("| prevalence | " + " | ".join(chance) + " |")
    scored = ", ".join(f"{name}={value}" for name, value in one["scored"].items())
    return [*lines, "", f"Scored with eval.anomaly: {scored}."]


def draw(found: dict[int, list[dict]], file: pathlib.Path) -> None:
    """Bars of the AUPRC by digit, their deviation over seeds, and that of chance."""
    one = next(iter(found.values()))[0]
    drawn = ("", "_prior", "_distance", "_gaussian")
    rows = [row for row, s in _ROWS.items() if s in drawn and f"auprc{s}" in one]
    figure, axis = plt.subplots(figsize=(3 + len(found), 3.5), layout="constrained")
    places, width = np.arange(len(found)), 0.8 / len(rows)
    for i, row in enumerate(rows):
        values = np.array(
            [[r[f"auprc{_ROWS[row]}"] for r in results] for results in found.values()]
        )
        axis.bar(
            places + (i - (len(rows) - 1) / 2) * width,
            values.mean(axis=1),
            width,
            yerr=values.std(axis=1),
            label=row,
            color=plt.cm.viridis(i / len(rows)),
        )
    chance = [results[0]["prevalence"] for results in found.values()]
    axis.hlines(chance, places - 0.4, places + 0.4, "black", "dotted", label="chance")
    axis.set(xlabel="digit held out", ylabel="AUPRC, mean ± deviation", ylim=(0, 1))
    axis.set_xticks(places, list(found))
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
    """Called by the program alone: two may not define the same flags."""
    config_flags.DEFINE_config_file("config", lock_config=True)
    flags.DEFINE_string("workdir", None, "Where to write.", required=True)
    flags.DEFINE_string("digits", "1,4,5,7,9", "Digits to hold out, one at a time.")
    flags.DEFINE_integer("seeds", 5, "Seeds 0 .. N-1 of each digit.", lower_bound=1)


if __name__ == "__main__":
    _define_flags()
    app.run(main, flags_parser=command_line.parse)
