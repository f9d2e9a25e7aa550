"""The config of a run is made of its config.json: every one, typed, and of old runs."""

import json

import pytest
from ml_collections import config_dict

from experiments import command_line, options
from experiments.configs import CONFIGS, default
from experiments.errors import ConfigError
from experiments.rundir import of_run
from experiments.rundir.settings import overrides, write_settings
from tests.experiments.evaluation.saved import experiment_of

NAMES = sorted(file.stem for file in CONFIGS.glob("[!_]*.py"))


def write(path, config):
    (path / "config.json").write_text(config.to_json())


@pytest.mark.parametrize("name", NAMES)
def test_config_of_a_run_is_that_it_was_trained_with(tmp_path, name):
    config = command_line.config_of(str(CONFIGS / f"{name}.py"))
    write(tmp_path, config)
    again = of_run.get_config(str(tmp_path))
    assert options.read(again) == options.read(config)
    assert of_run.differing(config, tmp_path) == []
    for field, value in options.flat(again.to_dict()):
        assert not isinstance(value, list), field  # the command line sets tuples


def test_fields_that_are_none_keep_their_types(tmp_path):
    write(tmp_path, default.get_config())
    config = of_run.get_config(str(tmp_path))
    assert config.data.get_type("image_shape") is tuple
    assert config.data.get_type("heldout_class") is int
    config.data.image_shape = (8, 8, 1)


def test_older_runs_have_defaults_and_the_names_of_today(tmp_path):
    config = default.get_config()
    values = json.loads(config.to_json())
    del values["learning"]["target_acceptance"], values["chains"]["prior"]["name"]
    values["guard"] = {"max_rescues": values.pop("monitor").pop("max_rollbacks")}
    (tmp_path / "config.json").write_text(json.dumps(values))
    # What it did without these fields, not what is done by default today.
    config.chains.prior.name, config.learning.target_acceptance = "langevin", 0.0
    assert options.read(of_run.get_config(str(tmp_path))) == options.read(config)


def test_field_that_a_newer_version_has_is_named(tmp_path):
    config = default.get_config()
    config.learning.later = 3
    write(tmp_path, config)
    with pytest.raises(ConfigError, match="'later'"):
        options.read(of_run.get_config(str(tmp_path)))


@pytest.mark.parametrize(
    "values", [{"seed": "x"}, {"learning": 3}, {"learning": {"num_steps": [1]}}]
)
def test_value_of_another_type_is_refused_by_the_name_of_the_file(tmp_path, values):
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"config\.json") as caught:
        options.read(of_run.get_config(str(tmp_path)))
    assert "\n" not in str(caught.value)


def test_differing_fields_are_named(tmp_path):
    config = default.get_config()
    write(tmp_path, config)
    config.seed, config.data.name = 3, "mnist"
    config.backbone = config_dict.ConfigDict({"name": "ladder", "widths": (3,)})
    names = of_run.differing(config, tmp_path)
    assert names == ["backbone.name", "backbone.widths", "data.name", "seed"]


def test_paths_are_whole_in_the_run_and_relative_ones_are_the_same(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    fields = {"data.data_dir": "photos", "eval.fid.reference": "~/fid.npz"}
    experiment = experiment_of(**fields)
    write_settings(tmp_path, experiment, {})
    config = of_run.get_config(str(tmp_path))
    assert config.data.data_dir == str(tmp_path / "photos")
    assert config.eval.fid.reference == str(tmp_path / "home" / "fid.npz")
    assert overrides(tmp_path, experiment) == []
    monkeypatch.chdir("/")
    assert len(overrides(tmp_path, experiment)) == 1


def test_address_of_data_is_kept(tmp_path):
    write_settings(tmp_path, experiment_of(**{"data.data_dir": "gs://tfds/data"}), {})
    assert of_run.get_config(str(tmp_path)).data.data_dir == "gs://tfds/data"
