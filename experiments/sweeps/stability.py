"""Trains many seeds and settings in one vmapped program, and says which stay sound.

    python -m experiments.sweeps.stability --config=experiments/configs/digits.py
        --workdir=DIR --seeds=20 --length=3
    python -m experiments.sweeps.stability --config=experiments/configs/digits.py
        --workdir=DIR --seeds=2 --length=3 --setting=gradient_penalty=0
        --setting=energy_lr=1e-3

`--length` multiplies `learning.num_steps`; each `--setting` is one more row, with
fields of `learning` that may differ between the runs of one program. No run is ever
rolled back: each is held against the limits of `config.monitor` at every `log.every`
steps, and what it came to is written to DIR/stability.json, with what `eval.protocol`
measures of the averaged parameters at the end: Frechet distances. A killed program goes
on from its last checkpoint.
"""

import math
import pathlib
import sys

import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags
from tqdm import tqdm

from experiments import command_line, options
from experiments.data import datasets
from experiments.errors import USER_ERRORS, ConfigError
from experiments.evaluation.contract import Evaluator, Number
from experiments.evaluation.registry import create
from experiments.models import build_model
from experiments.options import Experiment
from experiments.runs import Run
from experiments.runtime.files import local_path, write_json
from experiments.streams import Stream
from experiments.sweeps.vmapped import TRACED, VmappedRun, as_run, train_vmapped


def main(argv: list[str]) -> None:
    """Trains the runs and writes stability.json."""
    del argv  # its flags are parsed, and it may hold nothing else
    logging.set_verbosity(logging.WARNING)
    given = flags.FLAGS
    try:
        settings = [parse_setting(text) for text in given.setting]
        config, path = given.config.to_dict(), local_path("workdir", given.workdir)
        run(lengthened(config, given.length), path, settings, given.seeds)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")


def lengthened(config: dict, length: float) -> Experiment:
    """Returns the experiment of a config with `length` times its steps."""
    if not math.isfinite(length):
        raise ConfigError(f"--length must be finite, got {length}")
    num_steps = round(length * config["learning"]["num_steps"])
    learning = config["learning"] | {"num_steps": num_steps}
    return options.read({**config, "learning": learning})


def run(
    experiment: Experiment, path: pathlib.Path, settings: list[dict], seeds: int
) -> None:
    """Trains `seeds` runs of each setting."""
    evaluator = create(experiment)
    if reason := evaluator.lacks(experiment):
        raise ConfigError(reason)
    splits = datasets.load(experiment.data)
    images = splits["train"].images
    model = build_model(experiment, images.shape[1:])
    names = [(setting, seed) for setting in settings for seed in range(seeds)]
    runs = [VmappedRun(images, seed, setting) for setting, seed in names]
    labels = [*map(list, names)]
    state, history = train_vmapped(experiment, path, model, runs, labels, splits)
    results = []
    for i, (setting, seed) in enumerate(tqdm(names, desc="evaluating", disable=None)):
        trained = as_run(experiment, path, model, state, i, seed, splits)
        numbers = numbers_of(evaluator, trained)
        results.append({"setting": setting, "seed": seed} | history.of_run(i) | numbers)
    write_json(path / "stability.json", results)
    _print_table(settings, results)
    print(f"wrote {path / 'stability.json'}")


def numbers_of(evaluator: Evaluator, run: Run) -> dict[str, Number]:
    """Measures a run; numbers that are not finite are left out."""
    numbers = evaluator.evaluate(run.key(Stream.EVALUATION), run).numbers
    return {k: v for k, v in numbers.items() if np.all(np.isfinite(v))}


_COLUMNS = {
    "largest_energy_gap_nats": "largest gap",
    "last_energy_gap_nats": "last gap",
    "last_prior_step_size": "prior step",
    "last_prior_acceptance_rate": "accepted",
    "last_prior_stiffness": "prior stiffness",
    "last_posterior_stiffness": "posterior stiffness",
    "frechet": "Frechet 1x",
    "frechet_long_chain": "Frechet 4x",
    "frechet_exact": "exact",
    "frechet_untilted": "untilted",
    "frechet_posterior": "posterior",
    "frechet_perfect": "perfect prior",
}


def _print_table(settings, results):
    """Prints a Markdown row per setting: mean and standard deviation over seeds."""
    columns = {k: v for k, v in _COLUMNS.items() if any(k in r for r in results)}
    print("| setting | beyond limits | " + " | ".join(columns.values()) + " |")
    print("|---" * (len(columns) + 2) + "|")
    for setting in settings:
        rows = [r for r in results if r["setting"] == setting]
        name = ", ".join(f"{k} {v:g}" for k, v in setting.items()) or "as configured"
        cells = [name, f"{sum(bool(r['diverged']) for r in rows)} of {len(rows)}"]
        for field in columns:
            values = [r.get(field, np.nan) for r in rows]
            cells.append(f"{np.mean(values):.3g} ± {np.std(values):.2g}")
        print("| " + " | ".join(cells) + " |")


def parse_setting(text: str) -> dict[str, float]:
    """Reads a --setting.

    Example:
      >>> parse_setting("energy_lr=1e-3,gradient_penalty=0")
      {'energy_lr': 0.001, 'gradient_penalty': 0.0}
    """
    setting = {}
    for item in filter(None, text.split(",")):
        name, _, value = item.partition("=")
        if name not in TRACED:
            raise ConfigError(f"--setting: unknown {name!r}; known: {TRACED}")
        try:
            setting[name] = float(value)
        except ValueError:
            raise ConfigError(f"--setting: {item!r} is not FIELD=NUMBER") from None
        if not math.isfinite(setting[name]):
            raise ConfigError(f"--setting: {name} must be finite, got {value}")
    return setting


def _define_flags():
    """Defines the flags; only the program calls it, as no two may define the same."""
    config_flags.DEFINE_config_file("config", lock_config=True)
    flags.DEFINE_string("workdir", None, "Where to write.", required=True)
    flags.DEFINE_integer("seeds", 20, "Seeds 0 .. N-1 of every setting.")
    flags.DEFINE_float("length", 3.0, "Times learning.num_steps.")
    flags.DEFINE_multi_string(
        "setting", [""], "FIELD=VALUE[,FIELD=VALUE ...] of learning; one row each."
    )


if __name__ == "__main__":
    _define_flags()
    app.run(main, flags_parser=command_line.parse)
