"""Measures a trained run, and writes what was measured: eval.json.

`eval.protocol` chooses the evaluator, of `experiments.evaluation.registry`. With every
one go acceptance and stiffness of the chains (`experiments.evaluation.chains`) and how
well they mix (`experiments.evaluation.mixing`). A file describes itself: beside numbers
and facts it holds "report", a list of `described` results, of which the report page
and the table of runs are made. Numbers by Inception, and those of any other protocol
than the run's own, go into a file of the protocol's name, like eval_paper.json.
"""

import pathlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments import pictures
from experiments.data import datasets
from experiments.errors import ConfigError
from experiments.evaluation import chains, mixing
from experiments.evaluation.contract import Evaluator, Result
from experiments.evaluation.registry import create, protocol_of
from experiments.options import Experiment
from experiments.rundir import report
from experiments.rundir.metrics import training_budget
from experiments.rundir.settings import read_settings
from experiments.runs import Run, open_run
from experiments.runtime import parallel
from experiments.runtime.files import write_json
from experiments.streams import Stream

WITH_EVERY = (chains.evaluate, mixing.evaluate)


def evaluate(experiment: Experiment, path: pathlib.Path) -> None:
    """Measures the run in `path`; chains and seed may be others than its own.

    Raises:
      ConfigError: for settings that cannot work, and what the evaluator lacks.
    """
    evaluator = create(experiment)
    if reason := evaluator.lacks(experiment):
        raise ConfigError(reason)
    _evaluate(evaluator, open_run(experiment, path))


def evaluate_if_possible(experiment: Experiment, path: pathlib.Path) -> None:
    """Evaluates the run; if the evaluator lacks something, measures the rest.

    The screen and eval.json then say what was not measured, and why.
    """
    evaluator = create(experiment)
    reason = evaluator.lacks(experiment)
    if reason:
        print(f"Not evaluated: {reason}.")
    _evaluate(evaluator, open_run(experiment, path), reason)


def _evaluate(evaluator, run, reason=""):
    what = "Measuring the chains of" if reason else "Evaluating"
    prior = ", with its Gaussian prior" if run.experiment.prior == "gaussian" else ""
    print(f"{what} {run.path} at step {run.step}{prior}.")
    started = time.perf_counter()
    results = measure(evaluator, run, reason)
    facts = facts_of(run, results) | {"seconds": time.perf_counter() - started}
    write(evaluator, run, results, facts)
    report.write(run.path)


def measure(evaluator: Evaluator, run: Run, reason: str = "") -> list[Result]:
    """Returns the results of the evaluator, and of what goes with every one.

    Where there is a reason why it cannot measure, its result is that reason.
    """
    key = run.key(Stream.EVALUATION)
    about = f"Not evaluated by {_protocol(run)!r}: {reason}."
    own = Result({}, about=about) if reason else evaluator.evaluate(key, run)
    return [own, *(measured(key, run) for measured in WITH_EVERY)]


def facts_of(run: Run, results: list[Result]) -> dict[str, Any]:
    """Returns the settings that the numbers were measured with."""
    experiment = run.experiment
    facts: dict[str, Any] = {}
    for result in results:
        facts |= result.facts
    return {
        "step": run.step,
        "seed": experiment.seed,
        "prior": experiment.prior,
        "protocol": _protocol(run),
        "data": datasets.described(experiment.data),
        **facts,
        **training_budget(run.path, experiment),
        "hardware": parallel.hardware(),
    }


def write(
    evaluator: Evaluator, run: Run, results: list[Result], facts: dict[str, Any]
) -> None:
    """Writes the figures and the numbers of results, and prints them."""
    measured = {k: v for result in results for k, v in result.numbers.items()}
    for result in results:
        if result.about:
            print(result.about)
        if lines := [*lines_of(result)]:
            print(*lines, sep="\n")
        for warning in result.warnings:
            print(f"warning: {warning}")
    for file in _drawn(run, results):
        print(f"wrote {file}")
    file = file_of(evaluator, run)
    write_json(file, _finite(measured) | facts | {"report": [*map(described, results)]})
    evaluator.written(run)
    print(f"wrote {file}")


def lines_of(result: Result) -> Iterator[str]:
    r"""Formats a result for the screen: its tables if it has lists, its numbers.

    Example:
      >>> result = Result({"fid": 12.34567, "log_z_agrees": True})
      >>> print(*lines_of(result), sep="\n")
        fid           12.35
        log_z_agrees  yes
      >>> from experiments.evaluation.contract import Table
      >>> table = Table(["", "-score(0)", "LLR>1"], [["noise", 0.98765, 0.5]])
      >>> result = Result({"auroc_noise": [0.98765, 0.5]}, tables=(table,))
      >>> print(*lines_of(result), sep="\n")
               -score(0)  LLR>1
        noise  0.9877     0.5
    """
    single = {k: v for k, v in result.numbers.items() if not isinstance(v, list)}
    if len(single) < len(result.numbers):
        for table in result.tables:
            rows = [table.head, *([*map(_text, row)] for row in table.rows)]
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            for row in rows:
                cells = (f"{c:<{w}}" for c, w in zip(row, widths, strict=True))
                yield f"  {'  '.join(cells)}".rstrip()
    width = max(map(len, single), default=0)
    for name, value in single.items():
        yield f"  {name:<{width}}  {_text(value)}"


def _text(value):
    if isinstance(value, str):
        return value
    if value is None or not np.isfinite(value):
        return "not finite, left out"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}"


def described(result: Result) -> dict[str, Any]:
    """Returns what "report" holds of a result: JSON for readers."""
    return {
        "about": result.about,
        "tables": [
            {"head": table.head, "rows": [[*map(_cell, row)] for row in table.rows]}
            for table in result.tables
        ],
        "warnings": list(result.warnings),
    }


def _cell(value):
    """Converts a cell to what readers and JSON can show: a nan becomes None."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _finite(numbers):
    return {k: value for k, value in numbers.items() if np.all(np.isfinite(value))}


def _drawn(run, results):
    """Writes the results' figures, and returns their files."""
    figures = {name: d for result in results for name, d in result.figures.items()}
    files = [run.folder("figures") / f"{name}.png" for name in figures]
    for file, drawing in zip(files, figures.values(), strict=True):
        pictures.save_figure(drawing.figure, file, drawing.caption)
    pictures.stamp_all(files, run.label)
    return files


def file_of(evaluator: Evaluator, run: Run) -> pathlib.Path:
    """Names eval.json by what is measured otherwise than in the run."""
    named, own = _protocol(run), read_settings(run.path)["eval"]["protocol"]
    own = protocol_of(own, run.experiment.data.name)
    if named == own and not evaluator.OWN_FILE:
        named = ""
    parts = [part for part in (named, run.variant_name) if part]
    return run.path / f"{'_'.join(['eval', *parts])}.json"


def _protocol(run):
    """Names the evaluator that is used, which "auto" only stands for."""
    experiment = run.experiment
    return protocol_of(experiment.eval.protocol, experiment.data.name)
