"""Runs of the tiny configuration with random parameters: nothing is trained."""

import dataclasses

import pytest

import jebm
from experiments import options
from experiments.configs import test
from experiments.data.loaders import LOADERS, Options
from experiments.drawing.figures import draw_figures
from experiments.models import build_model
from experiments.rundir.settings import write_settings
from experiments.runs import Run
from experiments.runtime.files import write_text
from tests.experiments.drawing.made_up import lines_text
from tests.models import random_params


@pytest.fixture(scope="package")
def make_run(tmp_path_factory):
    """Makes a run of the tiny configuration, with other fields where they are given."""
    splits = LOADERS["digits"](Options())

    def make(**fields) -> Run:
        config = test.get_config()
        config.update_from_flattened_dict(fields)
        experiment = options.read(config)
        model = build_model(experiment, (8, 8, 1))
        path = tmp_path_factory.mktemp("runs") / "run"
        write_settings(path, experiment, jebm.to_spec(model))
        write_text(path / "metrics.jsonl", lines_text())
        return Run(path, experiment, model, random_params(model), 8, splits)

    return make


@pytest.fixture(scope="package")
def run(make_run):
    """A run of layers of 4 and 2 dimensions; its directory is not to be changed."""
    return make_run()


@pytest.fixture
def fresh_run(run, tmp_path):
    """The same run in a directory that may be changed."""
    write_settings(tmp_path, run.experiment, jebm.to_spec(run.model))
    write_text(tmp_path / "metrics.jsonl", lines_text())
    return dataclasses.replace(run, path=tmp_path)


@pytest.fixture(scope="package")
def drawn_run(make_run):
    """A run with all its figures; its directory is not to be changed."""
    run = make_run()
    return run, draw_figures(run)
