"""A run that several files of tests read."""

import shutil

import pytest

from experiments.evaluation import evaluate
from tests.experiments.evaluation.saved import experiment_of, save_run


@pytest.fixture(scope="package")
def measured_run(tmp_path_factory):
    """The directory of a run that is evaluated; not to be changed."""
    path = save_run(tmp_path_factory.mktemp("evaluated") / "run")
    evaluate.evaluate(experiment_of(), path)
    return path


@pytest.fixture
def copied_run(measured_run, tmp_path):
    """The same in a directory that may be changed."""
    return shutil.copytree(measured_run, tmp_path / "run")
