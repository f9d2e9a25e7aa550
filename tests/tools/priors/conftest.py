"""A run with an encoder, and settings with which a row takes seconds."""

import pytest

from experiments import options
from experiments.configs import digits
from experiments.runs import open_run
from experiments.training import train
from tools.priors import settings
from tools.priors.__main__ import Bench


@pytest.fixture(scope="module")
def small(monkeypatch_module):
    """Few samples and particles, so that a row takes seconds."""
    few = settings.Backbone(
        {"flow": {"width": 16, "depth": 1, "num_integration_steps": 2}},
        batch_size=50, passes=1, num_samples=200, sample_batch=100, num_weighed=20,
        particles=2, temperatures=5,
    )  # fmt: skip
    monkeypatch_module.setattr(settings, "backbone", lambda frozen: few)
    return few


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def bench_of(encoded_run, small):
    def make(workdir, minutes=0.02):
        return Bench(encoded_run, workdir, minutes, heldout=4)

    return make


@pytest.fixture(scope="module")
def encoded_run(tmp_path_factory):
    """A few steps of `digits`."""
    config = digits.get_config()
    config.learning.num_steps = config.log.every = 10
    config.log.checkpoint_every = config.log.sample_every = 10
    config.log.diagnose_every = 10
    config.learning.persistent_chains = 100
    path = tmp_path_factory.mktemp("run")
    experiment = options.read(config)
    train.train(experiment, path)
    return open_run(experiment, path)
