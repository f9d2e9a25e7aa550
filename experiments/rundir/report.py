"""report.html: one self-contained page that shows what a run is and did."""

import base64
import html
import pathlib
from collections.abc import Iterator
from typing import Any

from experiments import pictures
from experiments.data import datasets
from experiments.options import flat
from experiments.rundir import curves, data_note, verdict
from experiments.rundir.evaluations import Evaluation, read_evaluations
from experiments.rundir.metrics import read_metrics
from experiments.rundir.settings import read_settings, variant_of
from experiments.runtime.files import read_json, readable, write_text

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto;
       padding: 0 1rem; }}
h1 {{ margin-bottom: 0; }}
.grid {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr));
        gap: 1.5rem; }}
figure {{ margin: 0; }}
figcaption {{ opacity: .75; font-size: .9em; }}
img {{ max-width: min(100%, 62rem); border-radius: 4px; background: white; }}
.samples img {{ width: 100%; image-rendering: pixelated; }}
.grid > * {{ min-width: 0; overflow-x: auto; }}
.measured {{ display: flex; flex-wrap: wrap; gap: 1.5rem; }}
.measured > * {{ flex: 1 1 20rem; min-width: min-content; max-width: 100%;
                overflow-x: auto; }}
.measured > :first-child:not(:only-child) {{ flex: 2 1 36rem; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: .15rem .8rem .15rem 0; text-align: left;
         font-variant-numeric: tabular-nums; vertical-align: top; }}
summary {{ cursor: pointer; font-weight: 600; }}
.warning {{ color: var(--alarm); }}
.glance {{ list-style: none; padding: 0; }}
.glance li {{ padding-left: 1.6em; text-indent: -1.6em; }}
.glance li::before {{ display: inline-block; width: 1.6em; text-indent: 0;
                     font-weight: 700; }}
.glance .good::before {{ content: "\\2713"; color: #009E73; }}
.glance .bad::before {{ content: "!"; color: var(--alarm); }}
.strip {{ display: flex; gap: .5rem; overflow-x: auto; }}
.strip figure {{ flex: 0 0 11rem; }}
{style}</style></head><body>
<h1>{title}</h1>
<p>{subtitle}</p>
{warnings}
{glance}
<section class="grid samples">{samples}</section>
{measured}
<h2>Over training</h2>
<section class="strip samples">{history}</section>
{curves}
<h2>Figures</h2>
{figures}
{distances}
{variants}
{scored}
<h2>Last metrics</h2>
{metrics}
<details><summary>Configuration</summary>{config}</details>
</body></html>
"""


def write(path: pathlib.Path) -> None:
    """Writes report.html of the run in `path` from the files that it holds now."""
    settings, lines = read_settings(path), read_metrics(path)
    evaluations = read_evaluations(path)
    steps = [line for line in lines if "rollback" not in line]
    last = steps[-1] if steps else {}
    history = _by_name(path / "samples")
    drawn = history.get("ebm") or history.get("gaussian") or []
    page = _PAGE.format(
        title=html.escape(_title(path.resolve())),
        subtitle=html.escape(_subtitle(path, settings, last.get("step", 0))),
        warnings=_made_up(settings) + _changed(path) + _rollbacks(lines),
        glance=_glance(verdict.findings(lines, evaluations, settings)),
        measured="".join(_evaluated(evaluations)),
        samples="".join(_figure(files[-1]) for files in history.values()),
        history="".join(
            _figure(file, f"step {int(file.stem.rsplit('_', 1)[1])}")
            for file in _thin(drawn, 8)
        ),
        style=curves.STYLE,
        curves=curves.section(lines),
        figures=_figures(path / "figures"),
        distances=_layers(path / "figures"),
        variants="".join(_variants(path)),
        scored="".join(_scored(path / "scores")),
        metrics=_table(last.items()),
        config=_table((name, str(value)) for name, value in flat(settings)),
    )
    write_text(path / "report.html", page)


def _title(path):
    """Names the run; a first stage with its second."""
    return f"{path.parent.name}/{path.name}" if path.name == "backbone" else path.name


def _subtitle(path, settings, step):
    """Says what the run is, on which images, and how far it has trained."""
    prior, data = settings["prior"], settings["data"]
    title = "joint EBM prior" if prior == "ebm" else "Gaussian prior"
    images = datasets.described(data)
    if data["name"] == "folder":
        images = f"the pictures of {readable(data['data_dir'])}"
    if read := data_note.read(path):
        train, test = (read[-1][name]["num"] for name in ("train", "test"))
        images += f" ({train:,} for training, {test:,} held out)"
    if (heldout := data.get("heldout_class")) is not None:
        images += f", without class {heldout}"
    return (
        f"{title} on {images}, {step} of {settings['learning']['num_steps']} training "
        f"steps, seed {settings['seed']}"
    )


def _glance(findings):
    """Lists what is good and what is not, with what to change."""

    def item(finding):
        kind = "good" if finding.good else "bad"
        advice = f" <strong>{html.escape(finding.advice)}</strong>"
        text = html.escape(finding.text) + (advice if finding.advice else "")
        return f'<li class="{kind}">{text}</li>'

    items = "".join(map(item, findings))
    return f'<ul class="glance">{items}</ul>' if items else ""


def _changed(path):
    """Says at which steps the images changed."""
    steps = [str(entry["step"]) for entry in data_note.read(path)[1:]]
    if not steps:
        return ""
    return f'<p class="warning">The images changed at step {", ".join(steps)}.</p>'


def _made_up(settings):
    """Says that the images are made up."""
    if settings["data"]["name"] != "fake":
        return ""
    text = f"{datasets.described(settings['data'])}: nothing here is a result."
    return f'<p class="warning"><strong>{html.escape(text)}</strong></p>'


def _rollbacks(lines):
    """Says where training has diverged and gone back, first on the page."""
    texts = [line["rollback"] for line in lines if "rollback" in line]
    if not texts:
        return ""
    items = "".join(f"<li>{html.escape(text)}</li>" for text in texts)
    return f'<ul class="warning">{items}</ul>'


def _evaluated(evaluations: list[Evaluation]) -> Iterator[str]:
    """Returns what each evaluation says it measured; equal parts appear once."""
    shown: list[dict[str, Any]] = []
    for evaluation in evaluations:
        first, *others = evaluation.report
        if evaluation.variant:
            first = first | {"about": f"With {evaluation.variant}. {first['about']}"}
        parts = [part for part in (first, *others) if part not in shown]
        shown += parts
        divs = "".join(f"<div>{_measured(part)}</div>" for part in parts)
        yield f'<section class="measured">{divs}</section>'


def _measured(part):
    warnings = (f'<p class="warning">{html.escape(w)}</p>' for w in part["warnings"])
    tables = (_table(table["rows"], table["head"]) for table in part["tables"])
    return f"<p>{html.escape(part['about'])}</p>{''.join(warnings)}{''.join(tables)}"


def _figures(folder):
    """Shows all figures of the run; the page draws the training curves on its own."""
    shown = "".join(
        f"<noscript>{_figure(file)}</noscript>"
        if file.stem == "training"
        else _figure(file)
        for file in sorted(folder.glob("*.png"))
    )
    return shown or "<p>None yet: they are drawn when training ends.</p>"


def _scored(folder):
    """Shows the images of each scored folder, sorted by how anomalous they are."""
    for file in sorted(folder.rglob("*.png")):
        name = str(file.relative_to(folder).with_suffix(""))
        yield f"<h2>Images of {html.escape(name)}</h2>"
        yield _figure(file)


def _variants(path):
    """Shows pictures drawn with other chains or seeds than the run's own."""
    for kind in ("samples", "figures"):
        for folder in sorted(p for p in (path / kind).glob("*") if p.is_dir()):
            shown = "".join(_figure(p) for p in sorted(folder.glob("*.png")))
            yield (
                f"<h2>With {html.escape(variant_of(path, folder.name))}</h2>"
                f'<section class="grid samples">{shown}</section>'
            )


def _layers(folder):
    """Returns what was measured of the single layers."""
    return (
        _layer_table(
            folder / "latent_planes.json",
            "Energy distance between samples of the prior and of the aggregate "
            "posterior, per layer. The ratio divides tilted by untilted.",
            ("layer", "tilted", "untilted", "posterior (floor)", "ratio"),
            lambda measured: measured.values(),
        )
        + _layer_table(
            folder / "hierarchical.json",
            "How often a classifier gives two images the same label: two of one row, "
            "which share the layers above k, and any two.",
            (
                "layers drawn again",
                "tilted, in a row",
                "any",
                "Gaussian, in a row",
                "any",
            ),
            lambda measured: [
                measured[prior][pairs]
                for prior in ("ebm", "gaussian")
                for pairs in ("in_rows", "overall")
            ],
        )
        + _layer_table(
            folder / "probes.json",
            "How well a small classifier tells the label from one layer alone.",
            ("layer", "accuracy", "accuracy of the most frequent class"),
            lambda measured: measured.values(),
        )
    )


def _layer_table(file, caption, head, values_of):
    if not file.is_file():
        return ""
    rows = [
        (name.replace("k=", "up to "), *(f"{v:.3f}" for v in values_of(measured)))
        for name, measured in read_json(file).items()
    ]
    return f"<p>{html.escape(caption)}</p>{_table(rows, head)}"


def _by_name(directory):
    """Groups the pictures NAME_STEP.png by name, in the order of their steps."""
    files: dict[str, list[pathlib.Path]] = {}
    known = (f for f in directory.glob("*_*.png") if f.stem.rsplit("_", 1)[1].isdigit())
    for file in sorted(known, key=lambda file: int(file.stem.rsplit("_", 1)[1])):
        files.setdefault(file.stem.rsplit("_", 1)[0], []).append(file)
    return dict(sorted(files.items()))


def _thin(files, count):
    if len(files) <= count:
        return files
    return [files[round(i * (len(files) - 1) / (count - 1))] for i in range(count)]


def _figure(file, caption=None):
    """Shows a picture with a caption, by default the one that its file holds."""
    data = base64.b64encode(file.read_bytes()).decode()
    caption = html.escape(pictures.caption_of(file) if caption is None else caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _table(rows, head=()):
    def row(cells, tag):
        return "".join(f"<{tag}>{html.escape(_format(c))}</{tag}>" for c in cells)

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return f"<table><tr>{row(head, 'th')}</tr>{body}</table>"


def _format(value):
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(_format, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
