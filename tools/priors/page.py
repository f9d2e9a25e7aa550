"""priors.md, priors.html and the picture: what was measured, side by side."""

import base64
import html
import pathlib
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from experiments import pictures
from experiments.runtime.files import read_json, readable, write_text
from tools.priors.measure import Floor

_HEAD = (
    "prior",
    "Frechet",
    "by a draw 4 times as expensive",
    "nats",
    "AUPRC",
    "learning, s",
    "1,000 draws, s",
    "parameters",
    "it cannot",
)
_STYLE = """:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto;
       padding: 0 1rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0;
  text-align: left; vertical-align: top; font-variant-numeric: tabular-nums; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr));
        gap: 1.5rem; }
figure { margin: 0; } img { width: 100%; image-rendering: pixelated; }
.plain img { max-width: 50rem; image-rendering: auto; }"""


def save_samples(
    images: np.ndarray, workdir: pathlib.Path, name: str, seed: int
) -> None:
    """Writes a grid of samples of the first seed that is drawn."""
    file = workdir / "samples" / f"{name}.png"
    if not file.is_file():
        pictures.save(pictures.grid(images), file, f"{name}, seed {seed}")


def write(workdir: pathlib.Path, floor: Floor, about: str) -> None:
    """Writes the pages from the measured.json below `workdir`."""
    measured = _measured(workdir)
    spread = "" if np.isnan(floor.spread) else f" ± {floor.spread:.2f}"
    about += (
        f" Posterior samples of training images: {floor.perfect:.2f}{spread}, which a "
        "perfect prior would reach; of the held-out images themselves: "
        f"{floor.paired:.2f}."
    )
    run = readable(str(workdir / "NAME" / "seedN" / "run"))
    about += (
        " Each prior is kept as a run: python -m experiments.main --workdir="
        f"{run} --mode=eval measures it further, --mode=figures draws it."
    )
    rows = [(name, *_cells(runs)) for name, runs in measured.items()]
    lines = [" | ".join(_HEAD), " | ".join("---" for _ in _HEAD)]
    lines += [" | ".join(row) for row in rows]
    table = "\n".join(f"| {line} |" for line in lines)
    write_text(workdir / "priors.md", f"{about}\n\n{table}\n")
    _picture(measured, floor, workdir / "quality.png")
    write_text(workdir / "priors.html", _page(workdir, about, rows))


def _measured(workdir):
    """Reads the runs of each prior, nearest prior first, those without numbers last."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(workdir.glob("*/seed*/measured.json")):
        found.setdefault(file.parents[1].name, []).append(read_json(file))

    def distance(name):
        return _mean(found[name], "frechet", np.inf)

    return {name: found[name] for name in sorted(found, key=distance)}


def _cells(runs):
    first = runs[0]
    if "lacks" in first:
        return ["", "", "", "", "", "", "", first["lacks"]]
    learned = [{"seconds": run["learned"]["seconds"]} for run in runs]
    error = _mean(runs, "nats_error", None)
    nats = _spread(runs, "nats", 2)
    if nats and len(runs) == 1:
        nats += f" ± {error:.2f}"
    if not nats:
        nats = "no density"
    return [
        _spread(runs, "frechet", 2),
        _spread(runs, "frechet_effort", 2),
        nats,
        _spread(runs, "auprc", 3),
        f"{_mean(learned, 'seconds', 0):.0f}",
        f"{_mean(runs, 'seconds_per_1000', 0):.2g}",
        f"{first['parameters']:,}",
        first["cannot"],
    ]


def _values(runs, name):
    return [run[name] for run in runs if run.get(name) is not None]


def _mean(runs, name, default):
    values = _values(runs, name)
    return float(np.mean(values)) if values else default


def _spread(runs, name, digits):
    """Formats the mean over seeds and, of several, their standard deviation."""
    values = _values(runs, name)
    if not values:
        return ""
    text = f"{np.mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {np.std(values, ddof=1):.{digits}f}"
    return text


def _picture(measured, floor, file):
    """Plots quality by seconds for 1,000 draws, and for draws 4 times as expensive."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(color=colormaps["tab20"].colors)
    axes.set(xscale="log", yscale="log", xlabel="seconds for 1,000 draws")
    axes.set(ylabel="Frechet distance to held-out images, not FID")
    names = {}
    for name, runs in measured.items():
        costs = [
            _mean(runs, f"seconds_per_1000{more}", None) for more in ("", "_effort")
        ]
        values = [_mean(runs, f"frechet{more}", None) for more in ("", "_effort")]
        if None in costs or None in values or not np.isfinite(values).all():
            continue
        [line] = axes.plot(costs, values, ":", linewidth=1)
        axes.plot(costs[0], values[0], "o", color=line.get_color())
        axes.plot(costs[1], values[1], "o", color=line.get_color(), fillstyle="none")
        names[name] = costs[0], values[0]
    given = {"color": "grey", "linewidth": 1}
    axes.axhline(floor.perfect, linestyle="--", label="a perfect prior", **given)
    axes.axhline(floor.paired, linestyle=":", label="reconstructions", **given)
    figure.legend(loc="outside upper right", ncols=2)
    _write_names(axes, names)
    caption = "Quality against the cost of a draw; open circles: 4 times the effort."
    pictures.save_figure(figure, file, caption)


def _write_names(axes, places):
    """Writes each name beside its point, where no other name stands if it can."""
    axes.figure.draw_without_rendering()  # that offsets are those of the last layout
    taken = []
    for name, place in places.items():
        for right, up in ((5, 5), (5, -14), (-5, 5), (-5, -14)):
            text = axes.annotate(
                name, place, (right, up), textcoords="offset points",
                ha="left" if right > 0 else "right",
            )  # fmt: skip
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
            text.set_visible(False)
        text.set_visible(True)
        taken.append(box)


def _page(workdir, about, rows):
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in _HEAD)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    grids = "".join(
        _figure(file, row[0])
        for row in rows
        if (file := workdir / "samples" / f"{row[0]}.png").is_file()
    )
    quality = _figure(workdir / "quality.png", "Quality against the cost of a draw.")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>Priors side by side</title><style>{_STYLE}</style></head><body>"
        f"<h1>Priors side by side</h1><p>{html.escape(about)}</p>"
        f"<table><tr>{head}</tr>{body}</table>"
        f'<section class="plain">{quality}</section>'
        f'<h2>Samples</h2><section class="grid">{grids}</section></body></html>\n'
    )


def _figure(file, caption):
    data = base64.b64encode(file.read_bytes()).decode()
    caption = html.escape(caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
