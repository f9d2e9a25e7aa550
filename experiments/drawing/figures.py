"""The figures of a trained run: a table, and what draws it.

A figure is a module of this package and a line of `FIGURES`. Its `compute(key, run)`
returns arrays and numbers, and its `draw` makes a matplotlib Figure of these alone.
"""

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from matplotlib.figure import Figure

import jebm
from experiments import pictures
from experiments.drawing import (
    by_layer,
    hierarchical,
    latent_planes,
    long_run,
    posterior_transition,
    training,
    transition,
)
from experiments.evaluation import probes
from experiments.models import active_chains
from experiments.options import Experiment
from experiments.rundir import report
from experiments.rundir.metrics import read_metrics
from experiments.runs import Run, open_run
from experiments.runtime.files import write_json
from experiments.streams import Stream


class FigureModule(Protocol):
    """What a module of a figure has."""

    def compute(self, key: jax.Array, run: Run) -> Any:
        """Returns arrays and numbers; `key` is a typed key, []."""

    def draw(self, results: Any) -> Figure:
        """Draws what `compute` has returned."""


class Entry(NamedTuple):
    """A line of `FIGURES`.

    Attributes:
      module: computes and draws.
      caption: what the page says below the picture.
      condition: whether the figure is drawn of a run.
      numbers: what of the results is written beside the picture, as NAME.json.
      varies: whether other chains or another seed change it; it then lies apart.
    """

    module: FigureModule
    caption: str
    condition: Callable[[Run], bool]
    numbers: Callable[[Any], Mapping[str, Any]] | None = None
    varies: bool = True


def has_metrics(run: Run) -> bool:
    """Returns whether training has written metrics."""
    return bool(read_metrics(run.path))


def has_posterior_chain(run: Run) -> bool:
    """Returns whether a chain draws posterior samples."""
    return "posterior" in active_chains(run.model)


def has_prior_chain(run: Run) -> bool:
    """Returns whether a chain draws samples of the tilted prior."""
    return "prior" in active_chains(run.model)


def has_several_layers(run: Run) -> bool:
    """Returns whether there are several layers of latents."""
    return len(run.model.backbone.latent_shapes) > 1


def has_layers_to_draw(run: Run) -> bool:
    """Returns whether lower layers can be drawn given those above."""
    return has_several_layers(run) and jebm.priors.has_density(run.model)


def has_layers_and_prior_chain(run: Run) -> bool:
    """Returns whether there are several layers of a tilted prior."""
    return has_several_layers(run) and has_prior_chain(run)


FIGURES: dict[str, Entry] = {
    "training": Entry(training, "Training curves", has_metrics, varies=False),
    "posterior_transition": Entry(
        posterior_transition, "Langevin transition of the posterior",
        has_posterior_chain,
    ),
    "by_layer": Entry(
        by_layer, "Held-out images, decoded from ever fewer layers of their posterior",
        has_layers_to_draw,
    ),
    "transition": Entry(
        transition, "Langevin transition of the tilted prior", has_prior_chain
    ),
    "long_run": Entry(
        long_run, "The tilted prior's chain far beyond the length of training",
        has_prior_chain, long_run.numbers,
    ),
    "hierarchical": Entry(
        hierarchical, "Rows of images that share the layers above; those below differ",
        has_layers_and_prior_chain, hierarchical.numbers,
    ),
    "latent_planes": Entry(
        latent_planes, "Latent planes", has_prior_chain, latent_planes.numbers
    ),
}  # fmt: skip


def figures(experiment: Experiment, path: pathlib.Path) -> None:
    """Draws all figures of the run in `path`, says when each is there; its report."""
    for file in each_figure(open_run(experiment, path)):
        print(f"wrote {file}", flush=True)
    report.write(path)


def draw_figures(run: Run) -> list[pathlib.Path]:
    """Draws all figures of a run; returns their files."""
    return list(each_figure(run))


def each_figure(run: Run) -> Iterator[pathlib.Path]:
    """Draws the figures whose condition holds, and probes the layers; yields files."""
    for name, entry in FIGURES.items():
        if entry.condition(run):
            yield draw_figure(name, run)
    if len(np.unique(run.splits["train"].labels)) > 1:
        yield write_probes(run)


def draw_figure(name: str, run: Run) -> pathlib.Path:
    """Draws one of `FIGURES` and writes its numbers; returns the picture's file."""
    entry = FIGURES[name]
    folder = run.folder("figures") if entry.varies else run.path / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    results = entry.module.compute(run.key(Stream.FIGURES), run)
    if entry.numbers is not None and (values := entry.numbers(results)):
        write_json(folder / f"{name}.json", values)
    figure = entry.module.draw(results)
    file = folder / f"{name}.png"
    pictures.save_figure(figure, file, entry.caption)
    pictures.stamp_all([file], run.label)
    return file


def write_probes(run: Run) -> pathlib.Path:
    """Writes how well a small classifier tells labels from each layer alone."""
    file = run.folder("figures") / "probes.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, probes.probe_layers(run.key(Stream.FIGURES), run))
    return file
