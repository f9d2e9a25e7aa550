"""Training curves: what is drawn of metrics.jsonl, and the part of a page that zooms.

`experiments.drawing.training` draws the same panels as a picture. The page must stand
alone, so its part is one inline script, without a library.
"""

import json
import pathlib
from typing import NamedTuple

PRIOR, POSTERIOR = "#0072B2", "#E69F00"  # colour-blind-safe
_COLOURS = ("posterior", "prior")  # classes of the curves of a panel


class Panel(NamedTuple):
    """One pair of axes: that of the posterior first, where there are two."""

    title: str
    names: tuple[str, ...]  # of metrics.jsonl
    unit: str
    limit: float | None = None  # a line not to be crossed
    # A metric that is in every line that has measured those of `names`: a line which
    # has it alone found no value to give, and breaks the curve.
    beside: str | None = None


PANELS = (
    Panel("log-likelihood of posterior samples", ("log_likelihood_nats",), "nats"),
    Panel("energies", ("energy_positive_nats", "energy_negative_nats"), "nats"),
    Panel("gap  E- minus E+", ("energy_gap_nats",), "nats"),
    Panel(
        "log Z, by walkers",
        ("log_z_nats",),
        "nats",
        beside="log_z_effective_samples",
    ),
    Panel("effective walkers (log Z needs 20)", ("log_z_effective_samples",), "number"),
    Panel("chain gradients", ("posterior_grad_norm", "prior_grad_norm"), "norm"),
    Panel(
        "acceptance of MALA steps of that size",
        ("posterior_acceptance", "prior_acceptance"),
        "probability",
    ),
    Panel(
        "stiffness (keep below .5)",
        ("posterior_stiffness", "prior_stiffness"),
        "s\u00b2/4 \u03bb_max",
        limit=0.5,
    ),
)
LABELS = {
    "energy_positive_nats": "E+  posterior samples",
    "energy_negative_nats": "E-  prior samples",
    **{f"prior_{x}": "prior chain" for x in ("grad_norm", "acceptance", "stiffness")},
    **{
        f"posterior_{x}": "posterior chain"
        for x in ("grad_norm", "acceptance", "stiffness")
    },
}


def panels(lines: list[dict]) -> list[Panel]:
    """Returns the panels of which there is something to draw."""
    present = drawable(lines)
    return [_of(panel, present) for panel in PANELS if present & set(panel.names)]


def _of(panel, present):
    """Drops the limit on stiffness where all chains have a Metropolis test."""
    stiff = [x for x in present & set(panel.names) if x.endswith("_stiffness")]
    tested = {x.removesuffix("acceptance_rate") + "stiffness" for x in present}
    if not stiff or not tested.issuperset(stiff):
        return panel
    return panel._replace(title="stiffness", limit=None)


def drawable(lines: list[dict]) -> set[str]:
    """Returns the names that have a finite value in some line.

    Example:
      >>> drawable([{"a": None}, {"b": 1.0}])
      {'b'}
    """
    return {name for line in lines for name, v in line.items() if v is not None}


def points(
    lines: list[dict], name: str, beside: str | None = None
) -> list[tuple[int, float | None]]:
    """Returns steps and values of a metric; None, a break, where none could be given.

    That is where it was not finite (null), or `beside` was written without it.

    Example:
      >>> points([{"step": 1, "a": 2.0}, {"step": 2, "a": None}, {"step": 3}], "a")
      [(1, 2.0), (2, None)]
      >>> points([{"step": 1, "b": 3.0}, {"step": 2, "a": 2.0, "b": 30.0}], "a", "b")
      [(1, None), (2, 2.0)]
    """
    return [(x["step"], x.get(name)) for x in lines if name in x or beside in x]


def rollbacks(lines: list[dict]) -> list[int]:
    """Returns the steps that the monitor went back to."""
    return [line["step"] for line in lines if "rollback" in line]


def section(lines: list[dict]) -> str:
    """Returns the curves as a part of a page; "" where there is nothing to draw."""
    present = drawable(lines)
    shown = [
        {
            "title": panel.title,
            "unit": panel.unit,
            "limit": panel.limit,
            "curves": [
                {
                    "label": LABELS.get(name, ""),
                    "colour": colour,
                    "points": [
                        (step, None if v is None else float(f"{v:.5g}"))
                        for step, v in points(lines, name, panel.beside)
                    ],
                }
                for name, colour in zip(panel.names, _COLOURS, strict=False)
                if name in present
            ],
        }
        for panel in panels(lines)
    ]
    if not shown:
        return ""
    data = json.dumps({"panels": shown, "rollbacks": rollbacks(lines)})
    data = data.replace("<", "\\u003c")  # the only way out of a script element
    script = pathlib.Path(__file__).with_suffix(".js").read_text()
    return _SECTION.replace("SCRIPT", script).replace("DATA", data)


STYLE = f"""
:root {{ --prior: {PRIOR}; --posterior: #B36B00; --alarm: #B00020; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --prior: #56B4E9; --posterior: {POSTERIOR}; --alarm: #FF7A8A; }}
}}
.curves svg {{ width: 100%; touch-action: pan-y; cursor: crosshair; }}
.curves text {{ fill: currentColor; font-size: 11px; }}
.curves .frame, .curves .grid-line {{ stroke: currentColor; fill: none; }}
.curves .frame {{ stroke-opacity: .5; }}
.curves .grid-line {{ stroke-opacity: .12; }}
.curves .curve {{ fill: none; stroke-width: 1.5; stroke-linecap: round; }}
.curves .prior {{ stroke: var(--prior); }}
.curves .posterior {{ stroke: var(--posterior); stroke-dasharray: 5 2; }}
.curves .alarm {{ stroke: var(--alarm); stroke-dasharray: 2 3; }}
.curves .chosen {{ fill: currentColor; fill-opacity: .12; }}
.curves .pointer {{ stroke: currentColor; stroke-opacity: .5; }}
.curves figcaption {{ opacity: 1; min-height: 3em; }}
.curves .key {{ display: inline-block; width: 1.4em; height: 0; border-top: 2px solid;
               vertical-align: middle; margin: 0 .3em 0 .8em; }}
.curves .key.prior {{ border-color: var(--prior); }}
.curves .key.posterior {{ border-color: var(--posterior); border-top-style: dashed; }}
"""

_SECTION = """
<p>Drag over a panel to zoom into its steps, double click to see all.
<button id="all-steps" hidden>all steps</button></p>
<section class="grid curves" id="curves"></section>
<script type="application/json" id="curves-data">DATA</script>
<script>
SCRIPT</script>
"""
