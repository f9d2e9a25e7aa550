"""Figures of a trained run: training curves, chains, latent planes, hierarchy."""

import pathlib

import jax
import matplotlib
import numpy as np

from experiments import pictures
from experiments.drawing.chains import long_run, posterior_transition, transition
from experiments.drawing.hierarchy import by_layer, hierarchical
from experiments.drawing.planes import latent_planes
from experiments.drawing.training import training_curves
from experiments.evaluation import classifier, probes
from experiments.rundir import report
from experiments.rundir.metrics import read_metrics
from experiments.rundir.settings import variant
from experiments.runs import open_run
from experiments.streams import Role

matplotlib.use("Agg")


def figures(config, path: pathlib.Path) -> None:
    """Draws all figures of the run in `path` and its report."""
    model, params, _, splits = open_run(config, path)
    folder = path / "figures" / variant(path, config)
    key = jax.random.fold_in(jax.random.key(config.seed), Role.FIGURES)
    images = splits["train"].images
    drawn = []
    if lines := read_metrics(path):
        drawn.append(training_curves(lines, path / "figures"))
    batch_size = config.eval.batch_size
    if len(np.unique(splits["train"].labels)) > 1:
        drawn.append(
            probes.write_probes(
                key, model, params, splits, folder / "probes.json", batch_size
            )
        )
    heldout = splits["test"].images
    if model.chains.posterior.num_steps:
        drawn.append(posterior_transition(key, model, params, heldout, folder))
    if len(model.backbone.latent_shapes) > 1:
        drawn.append(by_layer(key, model, params, heldout, folder))
    if model.energy is not None and model.chains.prior.num_steps:
        drawn.append(transition(key, model, params, folder))
        drawn.append(long_run(key, model, params, folder))
        if len(model.backbone.latent_shapes) > 1:
            labels = None
            if config.data.name in classifier.known():
                labels = classifier.labels(config.data.name)
            drawn.append(hierarchical(key, model, params, folder, labels))
        drawn.append(latent_planes(key, model, params, images, folder, batch_size))
    pictures.mark(config, drawn)
    for file in drawn:
        print(f"wrote {file}")
    report.write(path)
