"""Measures three settings of each prior on one trained generator.

    python -m tools.priors.tune --backbone=RUN --workdir=DIR [--priors=joint,flow] \\
        [--minutes=1] [--seed=9]

The settings are `TRIALS` of tools/priors/settings.py. Each learns for the same number
of minutes as in `tools.priors`, with a seed that the comparison does not use, and is
measured by its Frechet distance to the held-out images. DIR gets trials.md. After a
kill the same command goes on where it stopped.
"""

import pathlib
from typing import Any

import jax
from tqdm import tqdm

from experiments.errors import ConfigError
from experiments.runtime.files import read_json, write_json, write_text
from tools.arguments import of_backbone, positive
from tools.priors import learn, measure, settings
from tools.priors.__main__ import Bench, names
from tools.priors.backbone import open_backbone


def main() -> None:
    """Runs the command."""
    parser = of_backbone("python -m tools.priors.tune", __doc__)
    parser.add_argument(
        "--priors",
        type=names,
        default=", ".join(settings.TRIALS),
        help="names, separated by commas",
    )
    parser.add_argument(
        "--minutes", type=positive, default=1.0, help="training time of each setting"
    )
    parser.add_argument("--seed", type=int, default=9, help="of training and draws")
    arguments = parser.parse_args()
    try:
        run = open_backbone(arguments.backbone)
    except ConfigError as error:
        raise SystemExit(f"error: {error}") from None
    bench = Bench(run, arguments.workdir, arguments.minutes, heldout=-1)
    asked = [name for name in arguments.priors if name in settings.TRIALS]
    trials = [(name, i) for name in asked for i in range(len(settings.TRIALS[name]))]
    for name, i in tqdm(trials, desc="trials", unit="trial"):
        measure_trial(bench, name, i, arguments.seed)
        write_text(arguments.workdir / "trials.md", table(arguments.workdir))
    print(f"Look at {arguments.workdir / 'trials.md'}")


def measure_trial(bench: Bench, name: str, i: int, seed: int) -> None:
    """Learns a prior by its i-th setting and measures it, unless that has been done."""
    trial = settings.TRIALS[name][i]
    path = bench.workdir / name / f"trial{i}"
    if (path / "measured.json").is_file():
        return
    prior = settings.prior(name, bench.frozen, trial)
    path.mkdir(parents=True, exist_ok=True)
    if lacking := prior.lacks(bench.frozen):
        write_json(path / "measured.json", {"trial": told(trial), "lacks": lacking})
        return
    law, learned = learn.learn(
        name, prior, bench.frozen, bench.data, seconds=bench.seconds, seed=seed,
        path=path / "learned", batch_size=settings.batch_size(name, bench.frozen),
    )  # fmt: skip
    numbers, _ = measure.distances(
        jax.random.key(seed), law, bench.run.heldout, bench.features,
        bench.settings.num_samples, bench.settings.sample_batch,
    )  # fmt: skip
    numbers |= {"trial": told(trial), "updates": learned["updates"]}
    write_json(path / "measured.json", numbers)


def told(trial: dict[str, Any]) -> str:
    """Tells a setting in words.

    Example:
      >>> told({"learning_rate": 0.003, "width": 512})
      'learning rate .003, width 512'
    """
    return ", ".join(
        f"{name.replace('_', ' ')} {_short(value)}" for name, value in trial.items()
    )


def _short(value):
    if hasattr(value, "learning_rate"):  # of a part
        return f"of learning rate {_short(value.learning_rate)}"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}".removeprefix("0")


def table(workdir: pathlib.Path) -> str:
    """Makes the table of all trials in `workdir`, a row each."""
    head = ("prior", "setting", "Frechet", "by a draw 4 times as expensive", "updates")
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for file in sorted(workdir.glob("*/trial*/measured.json")):
        found = read_json(file)
        cells = [file.parents[1].name, found["trial"]]
        if "lacks" in found:
            cells += ["", "", found["lacks"]]
        else:
            distances = (found["frechet"], found["frechet_effort"])
            cells += [f"{d:.2f}" for d in distances] + [f"{found['updates']:,}"]
        lines.append(" | ".join(cells))
    return "".join(f"| {line} |\n" for line in lines)


if __name__ == "__main__":
    main()
