"""Walkers of a run: their curve, their place in checkpoints, their devices."""

import shutil

import jax
import numpy as np
import pytest

import jebm
from experiments.errors import ConfigError
from experiments.rundir.metrics import read_metrics
from experiments.runtime import parallel
from experiments.training import learner
from experiments.training.state import restore
from jebm import checkpoints
from tests.experiments.runs import build_model, create_state, run


def test_every_line_tells_log_z_with_its_error(trained_run):
    lines = read_metrics(trained_run)
    assert lines
    for line in lines:
        assert np.isfinite(line["log_z_nats"])
        assert 0 <= line["log_z_error_nats"] < 1
        assert 1 <= line["log_z_effective_samples"] <= 512.01


def test_its_last_value_is_that_of_annealing(trained_run):
    model, params = jebm.load(trained_run)
    annealed = jebm.partition.log_z(jax.random.key(0), model, params, num_particles=500)
    last = read_metrics(trained_run)[-1]
    error = np.hypot(annealed.standard_error, last["log_z_error_nats"])
    assert abs(last["log_z_nats"] - annealed.value) < 0.02 + 4 * error


@pytest.fixture
def saved(trained_run, tmp_path, test_config):
    path = shutil.copytree(trained_run, tmp_path / "run")
    return path, create_state(test_config, build_model(test_config))


def test_checkpoint_without_walkers_lets_others_begin(saved, capsys):
    path, state = saved
    step = checkpoints.steps(path)[-1]
    there = restore(path, state).walkers
    assert not np.array_equal(there.log_weight, state.walkers.log_weight)
    item = path / "checkpoints" / str(step) / "walkers"
    for file in item.rglob("d/*"):
        file.write_bytes(b"")
    assert restore(path, state).walkers is state.walkers
    assert "the walkers of log Z start again" in capsys.readouterr().out
    shutil.rmtree(item)
    assert restore(path, state).walkers is state.walkers
    assert not capsys.readouterr().out


def test_another_number_of_walkers_begins_anew(saved, test_config, capsys):
    path, _ = saved
    test_config.log.num_walkers = 30
    state = create_state(test_config, build_model(test_config))
    assert restore(path, state).walkers is state.walkers
    said = capsys.readouterr().out
    assert "of its walkers has shape (512, 4), expected (30, 4)" in said
    assert "log Z start again (log.num_walkers=30)" in said


def test_one_device_and_two_move_them_alike(saved, test_config):
    path, state = saved
    model = build_model(test_config)
    found = []
    for devices in (jax.local_devices()[:1], jax.local_devices()):
        follow = parallel.pmap(learner.make_follow(model), devices)
        placed = learner.distribute(restore(path, state), devices)
        moved, metrics = follow(jax.random.key(0), placed, np.zeros((len(devices), 1)))
        metrics = parallel.unreplicate(metrics)
        found.append((learner.collect(moved).walkers, metrics))
    assert len(jax.local_devices()) == 2
    for one, two in zip(*map(jax.tree.leaves, found), strict=True):
        # A step that rounding decides would move one of 512 walkers.
        close = np.isclose(one, two, rtol=1e-3, atol=1e-3)
        assert close.mean() > 0.98


def test_walkers_that_do_not_divide_among_devices_are_refused(test_config, tmp_path):
    test_config.log.num_walkers = 511
    with pytest.raises(
        ConfigError, match="num_walkers must be a multiple of the 2 dev"
    ):
        run(test_config, tmp_path / "run")


def test_none_are_none(test_config):
    test_config.log.num_walkers = 0
    assert create_state(test_config, build_model(test_config)).walkers == ()
    test_config.log.num_walkers, test_config.prior = 512, "gaussian"
    assert create_state(test_config, build_model(test_config)).walkers == ()
