"""The eval*.json of a run, which describe themselves.

Beside numbers and facts a file holds "report", a list of what was measured, for
readers: {"about": sentences, "tables": [{"head", "rows"}], "warnings": [sentences]}.
"""

import pathlib
from typing import Any, NamedTuple

from experiments.rundir.settings import variant_of
from experiments.runtime.files import read_json


class Evaluation(NamedTuple):
    """One file."""

    variant: str  # what was sampled otherwise than in the run, "" for nothing
    values: dict[str, Any]  # numbers and facts
    report: list[dict[str, Any]]


def read_evaluations(path: pathlib.Path) -> list[Evaluation]:
    """Reads those of the run in `path`, by the names of their files.

    Raises:
      ConfigError: if a file is damaged.
    """
    return [_read(file) for file in sorted(path.glob("eval*.json"))]


def _read(file):
    values = read_json(file)
    report = values.pop("report", None) or [_plain(values)]
    variant = file.stem.removeprefix("eval").removeprefix("_")
    variant = variant.removeprefix(values.get("protocol", "")).removeprefix("_")
    return Evaluation(variant_of(file.parent, variant), values, report)


def _plain(values):
    """Makes the report of an older version's file: its numbers by their names."""
    rows = [[name, value] for name, value in values.items() if _is_numeric(value)]
    about = (
        f"Protocol {values.get('protocol')!r} at step {values.get('step')}, measured "
        "by an older version."
    )
    table = {"head": ["", "value"], "rows": rows}
    return {"about": about, "tables": [table], "warnings": []}


def _is_numeric(value):
    if isinstance(value, list):
        return all(map(_is_numeric, value))
    return isinstance(value, (int, float))
