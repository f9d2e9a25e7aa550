"""One page that sets runs beside published numbers.

    python -m tools.site.table RUN [RUN ...] --out=table

writes table.html and table.md: the tables of arXiv 2306.06323 (FID and Inception
score), every published row marked as quoted, with the rows of those runs of the same
data set that were evaluated by `--config.eval.protocol=paper` or `clean`. Beside each
of our numbers stand protocol, sample count, prior, chain, temperature, reference,
hardware and budget. Runs of other data sets have tables of their own, and so have
Frechet distances in the features of small classifiers, which are no FIDs.
"""

import argparse
import html
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from experiments.errors import USER_ERRORS, ConfigError
from experiments.evaluation import fid
from experiments.rundir.report import INCEPTION
from experiments.runtime.files import write_text

PUBLISHED = pathlib.Path(__file__).parent / "published.json"
_SETS = {
    "": "{prior}, {chain}",
    "_long_chain": "{prior}, the chain 4 times as long",
    "_untilted": "Gaussian prior of the same generator",
    "_posterior": "held-out images from their posterior",
}
_FRECHET = {
    "frechet": "samples",
    "frechet_long_chain": "chain 4 times as long",
    "frechet_untilted": "without the energies",
    "frechet_posterior": "from the posterior",
    "frechet_real": "real halves",
}
_PRIORS = {"ebm": "joint EBM prior", "gaussian": "Gaussian prior"}


class Table(NamedTuple):
    """Cells of text; `strong` marks the rows of this method."""

    title: str
    head: list[str]
    rows: list[list[str]]
    strong: list[bool]


class Evaluation(NamedTuple):
    """One eval*.json of a run."""

    run: str
    data: str
    two_stages: bool
    found: dict[str, Any]


def evaluations(run: pathlib.Path) -> list[Evaluation]:
    """What was measured of a run.

    Raises:
      ConfigError: if it is no run, or was never evaluated.
    """
    try:
        config = json.loads((run / "config.json").read_text())
        files = sorted(run.glob("eval*.json"))
        found = [json.loads(file.read_text()) for file in files]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{run} is not a run that can be read: {error}") from None
    if not found:
        raise ConfigError(
            f"{run} holds no eval.json: evaluate it with --mode=eval and "
            "--config.eval.protocol=paper"
        )
    nvae = config["backbone"].get("name") == "nvae"
    two_stages = nvae or config["learning"]["method"] == "two_stage"
    name = run.resolve().name
    data = config["data"]["name"]
    # What was measured says what it is of, made-up images by another name.
    return [Evaluation(name, f.get("data", data), two_stages, f) for f in found]


def tables(runs: list[pathlib.Path]) -> list[Table]:
    """All tables of the page; see `evaluations` for errors."""
    measured = [e for run in runs for e in evaluations(run)]
    ours = [e for e in measured if e.found["protocol"] in fid.PROTOCOLS]
    made, placed = [], []
    for quoted in json.loads(PUBLISHED.read_text())["tables"]:
        same = [
            e
            for e in ours
            if (e.data, e.two_stages) == (quoted["data"], quoted["two_stages"])
        ]
        placed += same
        made.append(_inception_table(quoted["title"], quoted["rows"], same))
    others = [e for e in ours if e not in placed]
    for data in sorted({e.data for e in others}):
        same = [e for e in others if e.data == data]
        made.append(_inception_table(f"{data}: nothing published", [], same))
    if frechet := [e for e in measured if "frechet" in e.found]:
        made.append(_frechet_table(frechet))
    return made


def _inception_table(title, quoted, ours):
    head = ["", *INCEPTION.values(), "taken with", "hardware and budget"]
    rows, strong = [], []
    for row in quoted:
        cells = [row.get(name, "-") for name in INCEPTION]  # as printed there
        rows.append([row["model"], *cells, "quoted", ""])
        strong.append(row.get("this_method", False))
    for evaluation in ours:
        for cells in _our_rows(evaluation):
            rows.append(cells)
            strong.append(False)
    return Table(title, head, rows, strong)


def _our_rows(evaluation) -> Iterator[list[str]]:
    found = evaluation.found
    for suffix, text in _SETS.items():
        cells = [found.get(f"{name}{suffix}") for name in INCEPTION]
        if all(cell is None for cell in cells):
            continue
        prior = text.format(prior=_PRIORS[found["prior"]], chain=found["chain"])
        taken = (
            f"ours: protocol {found['protocol']}, {found['num_samples']:,} samples, "
            f"temperature {1.0 if suffix == '_posterior' else found['temperature']:g}, "
            f"step {found['step']:,}, seed {found['seed']}; {found['features']}; "
            f"reference {found['reference']}; Inception score in "
            f"{_splits(found['score_splits'])}"
        )
        if found["num_compared"]:
            num = found["num_compared"]
            taken += f"; KID, precision and recall of {num:,} samples"
        name = f"{evaluation.run}: {prior}"
        yield [name, *map(_number, cells), taken, _budget(found)]


def _frechet_table(evaluations):
    head = ["", *_FRECHET.values(), "taken with", "hardware and budget"]
    rows = [
        [
            f"{e.run}: {_PRIORS[e.found['prior']]}",
            *(_number(e.found.get(name)) for name in _FRECHET),
            f"ours: {e.found['num_samples']:,} samples to {e.found['num_reference']:,} "
            f"held-out images of {e.data}, {e.found['features']}, step "
            f"{e.found['step']:,}, seed {e.found['seed']}",
            _budget(e.found),
        ]
        for e in evaluations
    ]
    title = "Frechet distances in features of small classifiers: no FIDs"
    return Table(title, head, rows, [False] * len(rows))


def _budget(found):
    if "hardware" not in found:
        return "not recorded"
    training = found.get("training_hardware", "hardware that is not recorded")
    told = (
        f"trained on {found['training_images']:,} images in "
        f"{_hours(found['training_seconds'])} on {training}; measured in "
        f"{_hours(found['seconds'])} on {found['hardware']}"
    )
    rates = [
        f"{stage} {_rate(found[f'images_per_second_{stage}'])}"
        for stage in ("chain", "decoder", "metric")
        if f"images_per_second_{stage}" in found
    ]
    return f"{told}; images/s: {', '.join(rates)}" if rates else told


def _splits(num):
    return f"{num} splits" if num > 1 else "1 split"


def _rate(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _hours(seconds):
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _number(value):
    return "-" if value is None else f"{value:.4g}"


def markdown(tables: list[Table]) -> str:
    """The page in Markdown."""
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
    """The page in HTML, self-contained."""
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
        f"Rows marked as quoted are from {source}; none of them was measured here, and "
        "their authors' protocols differ. Rows marked as ours say what they were taken "
        "with: docs/metrics.md describes the protocols."
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
        "runs", type=pathlib.Path, nargs="+", metavar="RUN", help="of a run"
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
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
