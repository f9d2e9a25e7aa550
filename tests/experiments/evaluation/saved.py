"""Runs of the tiny configuration as they lie on a disk, with random parameters."""

import json
import pathlib

import jebm
from experiments import options
from experiments.configs import test
from experiments.models import build_model
from experiments.options import Experiment
from experiments.rundir.metrics import Metrics, add_hardware
from experiments.rundir.settings import write_settings
from experiments.runs import Run
from experiments.runtime import parallel
from tests.models import random_params

STEP = 8


def experiment_of(**fields) -> Experiment:
    """The tiny configuration, with other fields, named with dots in a dict."""
    config = test.get_config()
    config.update_from_flattened_dict(fields)
    return options.read(config)


def of_run(path: pathlib.Path, **fields) -> Experiment:
    """The experiment of a run, with other fields."""
    values = json.loads((path / "config.json").read_text())
    leaves = dict(options.flat(values)) | fields
    return options.read(options.nested(leaves))


def save_run(path: pathlib.Path, scale: float = 0.1, **fields) -> pathlib.Path:
    """Writes a run of 8 steps and 160 images, whose energies are near 0."""
    experiment = experiment_of(**fields)
    model = build_model(experiment, (8, 8, 1))
    spec = jebm.to_spec(model)
    write_settings(path, experiment, spec)
    jebm.save(path, model, random_params(model, scale=scale), STEP)
    metrics = Metrics(path, 0)
    for step in range(2, STEP + 1, 2):
        metrics.write(step, {"loss_nats": 7.5 / step, "images_per_second": 1000.0})
    metrics.close()
    add_hardware(path, parallel.hardware())
    return path


def run_of(model, params, splits, **fields) -> Run:
    """A run of the tiny configuration with another model; it lies nowhere."""
    nowhere = pathlib.Path("nowhere")
    return Run(nowhere, experiment_of(**fields), model, params, STEP, splits)
