"""Runs of the version before the monitor: they are read and resumed by its names."""

import json
import shutil

import pytest

from experiments import options
from experiments.errors import ConfigError
from experiments.rundir.metrics import read_metrics
from experiments.rundir.settings import check_settings, read_settings
from jebm import checkpoints
from tests.experiments.runs import contents, metrics, run, state_digests

METRICS = {"rollbacks": "rescues", "rollback": "rescue"}  # and their names in the file


def rename(values, names):
    return {names.get(name, name): value for name, value in values.items()}


@pytest.fixture
def older_run(trained_run, tmp_path):
    """A run whose files have the names of the older version."""
    path = shutil.copytree(trained_run, tmp_path / "run")
    leaves = dict(options.flat(json.loads((path / "config.json").read_text())))
    older = {new: old for old, new in options.RENAMED.items()}
    assert older.keys() <= leaves.keys()
    leaves["chains.prior.space"] = "eps_released"
    settings = options.nested(rename(leaves, older))
    assert settings["guard"]["max_rescues"] == 5 and "monitor" not in settings
    (path / "config.json").write_text(json.dumps(settings))
    lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    text = "".join(json.dumps(rename(line, METRICS)) + "\n" for line in lines)
    assert '"rescues": 0' in text
    (path / "metrics.jsonl").write_text(text)
    return path


@pytest.fixture
def config(test_config):
    """Of the run, but for the older name of a space."""
    test_config.chains.prior.space = "eps_no_jacobian"
    return test_config


@pytest.mark.parametrize("purpose", ["train", "read"])
def test_its_settings_are_those_of_today(older_run, config, purpose):
    experiment = options.read(config)
    check_settings(older_run, experiment, purpose)
    assert read_settings(older_run) == experiment.to_dict()
    assert options.read(read_settings(older_run)) == experiment


def test_another_setting_is_told_by_the_name_of_today(older_run, config):
    there = config.learning.reinit_probability
    config.learning.reinit_probability = 0.25
    experiment = options.read(config)
    words = rf"learning\.reinit_probability is {there} there, 0\.25 here"
    with pytest.raises(ConfigError, match=words):
        check_settings(older_run, experiment, "train")


def test_its_metrics_are_those_of_today(older_run, trained_run):
    assert read_metrics(older_run) == read_metrics(trained_run)


@pytest.mark.slow
def test_it_resumes_to_the_bits_of_a_run_that_is_not_interrupted(
    older_run, tmp_path, test_config, trained_run
):
    """The chain is that of the run: its space alone had another name."""
    values = json.loads((older_run / "config.json").read_text())
    values["chains"]["prior"]["space"] = "eps"
    (older_run / "config.json").write_text(json.dumps(values))
    newer = shutil.copytree(trained_run, tmp_path / "newer")
    test_config.learning.num_steps = 12
    for path in (older_run, newer):
        run(test_config, path)
        assert checkpoints.steps(path) == [4, 8, 12]
    ours, theirs = (state_digests(test_config, p, 12) for p in (older_run, newer))
    assert ours == theirs
    assert metrics(older_run) == metrics(newer)
    for path in (older_run, newer):
        assert "rescue" not in (path / "metrics.jsonl").read_text()
        assert "guard" not in (path / "config.json").read_text()


def test_checkpoints_keep_the_names_of_the_older_version(trained_run):
    """Every digest is stored by the path of its leaf, which old checkpoints have."""
    file = trained_run / "checkpoints" / "8" / "digests" / "metadata"
    stored = json.loads(file.read_text())["train_state"]
    assert {name for name in stored if "guard" in name} == {
        "['guard'].rescues",
        "['guard'].good",
    }
    assert not [name for name in stored if "monitor" in name or "rollback" in name]


def test_reading_it_writes_nothing(older_run, config):
    before = contents(older_run)
    check_settings(older_run, options.read(config), "read")
    assert contents(older_run) == before
