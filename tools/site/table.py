"""Makes one page that compares runs with published numbers.

    python -m tools.site.table RUN [RUN ...] --out=table

writes table.html and table.md: the tables of arXiv 2306.06323 (FID and Inception
score), every published row marked as quoted, with the rows of those runs of the same
data set that were evaluated by `--config.eval.protocol=paper` or `clean`. Beside each
of our numbers stand protocol, samples, prior, chain, temperature, reference, hardware
and budget. Measurements on other data sets or by other protocols have their own tables.
Everything comes from the eval*.json of the runs, which describe themselves
(`experiments.rundir.evaluations`): this page knows no evaluator.
"""

import argparse
import html
import json
import pathlib
import sys
from typing import Any, NamedTuple

from experiments.errors import USER_ERRORS, ConfigError
from experiments.rundir.evaluations import Evaluation, read_evaluations
from experiments.rundir.settings import read_settings
from experiments.runtime.files import write_text
from tools.arguments import path_argument

PUBLISHED = pathlib.Path(__file__).parent / "published.json"
_PRIORS = {"ebm": "joint EBM prior", "gaussian": "Gaussian prior"}
_BESIDE = ["taken with", "hardware and budget"]


class Table(NamedTuple):
    """Cells of text; `strong` marks the rows of this method."""

    title: str
    head: list[str]
    rows: list[list[str]]
    strong: list[bool]


class Measured(NamedTuple):
    """A table of one eval*.json of a run."""

    run: str
    data: str
    two_stages: bool
    evaluation: Evaluation
    head: list[str]
    rows: list[list[Any]]

    @property
    def protocol(self) -> str:
        """Names the evaluator that made it."""
        return self.evaluation.values["protocol"]


def measured(run: pathlib.Path) -> list[Measured]:
    """Returns what was measured of a run, without what goes with every evaluator.

    Raises:
      ConfigError: if it is no run, or was never evaluated.
    """
    try:
        settings, evaluations = read_settings(run), read_evaluations(run)
    except (ConfigError, OSError) as error:
        raise ConfigError(f"{run} is not a run that can be read: {error}") from None
    if not evaluations:
        raise ConfigError(
            f"{run} holds no eval.json: evaluate it with --mode=eval and "
            "--config.eval.protocol=paper"
        )
    nvae = settings["backbone"].get("name") == "nvae"
    two_stages = nvae or settings["learning"]["method"] == "two_stage"
    name, data = run.resolve().name, settings["data"]["name"]
    return [
        # What was measured says what it is of, made-up images by another name.
        Measured(
            *(name, evaluation.values.get("data", data), two_stages, evaluation),
            *(table["head"], table["rows"]),
        )
        for evaluation in evaluations
        for table in evaluation.report[0]["tables"]
    ]


def tables(runs: list[pathlib.Path]) -> list[Table]:
    """Returns all tables of the page; see `measured` for errors."""
    ours = [m for run in runs for m in measured(run)]
    made = []
    for quoted in json.loads(PUBLISHED.read_text())["tables"]:
        place = quoted["data"], quoted["two_stages"]
        columns = _columns(quoted["rows"])
        here = [
            m
            for m in ours
            if (m.data, m.two_stages) == place and set(columns) & set(m.head)
        ]
        ours = [m for m in ours if m not in here]
        made.append(_table(quoted["title"], columns, quoted["rows"], here))
    groups: dict[tuple[str, ...], list[Measured]] = {}
    for m in ours:
        groups.setdefault((m.data, m.protocol, *m.head), []).append(m)
    for (data, protocol, _, *columns), group in groups.items():
        title = f"{data}, protocol {protocol}: no published row here"
        made.append(_table(title, columns, [], group))
    return made


def _columns(quoted):
    """Names the columns that published rows have."""
    names = dict.fromkeys(name for row in quoted for name in row)
    return [name for name in names if name not in ("model", "this_method")]


def _table(title, columns, quoted, ours):
    """Tabulates published rows, and ours below them, which may have more columns."""
    columns = [*dict.fromkeys([*columns, *(c for m in ours for c in m.head[1:])])]
    rows = [
        [row["model"], *(row.get(c, "-") for c in columns), "quoted", ""]
        for row in quoted  # as printed there
    ]
    strong = [row.get("this_method", False) for row in quoted]
    rows += [row for m in ours for row in _rows(m, columns)]
    strong += [False] * (len(rows) - len(strong))
    return Table(title, ["", *columns, *_BESIDE], rows, strong)


def _rows(m, columns):
    values, description = m.evaluation.values, m.evaluation.report[0]
    variant = f" with {m.evaluation.variant}" if m.evaluation.variant else ""
    name = f"{m.run}{variant}, {_PRIORS[values['prior']]}"
    sentences = [description["about"], *description["warnings"]]
    taken = f"ours: {' '.join(sentences)} Protocol {m.protocol}, seed {values['seed']}."
    for title, *cells in m.rows:
        numbers = dict(zip(m.head[1:], cells, strict=True))
        shown = [_number(numbers.get(column)) for column in columns]
        yield [f"{name}: {title}", *shown, taken, _budget(values)]


def _budget(values):
    if "hardware" not in values:
        return "not recorded"
    training = values.get("training_hardware", "hardware that is not recorded")
    text = (
        f"trained on {values['training_images']:,} images in "
        f"{_hours(values['training_seconds'])} on {training}; measured in "
        f"{_hours(values['seconds'])} on {values['hardware']}"
    )
    prefix = "images_per_second_"
    rates = [
        f"{name.removeprefix(prefix)} {_rate(value)}"
        for name, value in values.items()
        if name.startswith(prefix)
    ]
    return f"{text}; images/s: {', '.join(rates)}" if rates else text


def _rate(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _hours(seconds):
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _number(value):
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(tables: list[Table]) -> str:
    """Formats the page in Markdown."""
    parts = [f"# {_TITLE}", _about()]
    for table in tables:
        lines = [table.head, ["---"] * len(table.head)]
        for row, strong in zip(table.rows, table.strong, strict=True):
            cells = [cell.replace("|", "\\|") for cell in row]
            if strong:
                cells = [
                    f"**{c}**" if c not in ("", "-", "quoted") else c for c in cells
                ]
            lines.append(cells)
        body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        parts += [f"## {table.title}", body]
    return "\n\n".join(parts) + "\n"


def page(tables: list[Table]) -> str:
    """Formats the page in HTML, self-contained."""
    sections = []
    for table in tables:
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.head)
        body = []
        for row, strong in zip(table.rows, table.strong, strict=True):
            kind = "quoted" if row[-2] == "quoted" else "ours"
            kind += " strong" if strong else ""
            cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row)
            body.append(f'<tr class="{kind}">{cells}</tr>')
        sections.append(
            f"<h2>{html.escape(table.title)}</h2>\n<table><thead><tr>{head}</tr></thead>"
            f"\n<tbody>{''.join(body)}</tbody></table>"
        )
    return _PAGE.format(
        title=html.escape(_TITLE),
        about=html.escape(_about()),
        sections="\n".join(sections),
    )


_TITLE = "Runs of jebm beside published numbers"


def _about():
    source = json.loads(PUBLISHED.read_text())["source"]
    return (
        f"Rows marked as quoted are from {source}: we measured none of them, and their "
        "authors' protocols differ. Rows marked as ours name their protocol; "
        "docs/metrics.md describes the protocols."
    )


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 82rem; margin: 2rem auto;
       padding: 0 1rem; }}
h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
table {{ border-collapse: collapse; width: 100%; table-layout: fixed; }}
th {{ width: 5rem; }}
th:first-child {{ width: 16rem; }}
th:nth-last-child(-n+2) {{ width: auto; }}
th, td {{ padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top;
         font-variant-numeric: tabular-nums; }}
th {{ border-bottom: 1px solid; font-weight: 600; }}
td:nth-last-child(-n+2) {{ font-size: .85em; opacity: .8; }}
tr.ours {{ background: color-mix(in srgb, royalblue 14%, transparent); }}
tr.strong td:not(:nth-last-child(-n+2)) {{ font-weight: 700; }}
</style></head><body>
<h1>{title}</h1>
<p>{about}</p>
{sections}
</body></html>
"""


def main(argv: list[str] | None = None) -> None:
    """Writes both files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", type=path_argument, nargs="+", metavar="RUN", help="of a run"
    )
    parser.add_argument(
        "--out",
        type=path_argument,
        default=pathlib.Path("table"),
        help="where to write, without .html and .md (default: %(default)s)",
    )
    given = parser.parse_args(argv)
    try:
        made = tables(given.runs)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        for suffix, text in ((".html", page(made)), (".md", markdown(made))):
            file = given.out.with_name(given.out.name + suffix)
            write_text(file, text)
            print(f"wrote {file}")
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
