import pytest

from experiments.command_line import config_of
from experiments.errors import ConfigError
from experiments.options import flat
from tools.headline import settings
from tools.headline.__main__ import parse


@pytest.mark.parametrize("name", sorted(settings.CHOICES))
def test_fields_of_a_choice_are_fields_of_its_config(name):
    choice = settings.CHOICES[name]
    file = settings.CONFIGS / f"{choice.config}.py"
    known = dict(flat(config_of(str(file)).to_dict()))
    assert {*choice.fields, *choice.smallest} <= known.keys()


def test_a_folder_is_trained_on_and_what_is_given_last_wins(tmp_path):
    given = settings.arguments(str(tmp_path), True, ["--config.learning.batch_size=7"])
    assert given[0] == f"--config={settings.CONFIGS / 'cifar10.py'}"
    assert "--config.data.name=folder" in given
    assert f"--config.data.data_dir={tmp_path}" in given
    assert "--config.data.image_shape=(32, 32, 3)" in given
    assert "--config.backbone.decoder_widths=(32, 16, 8)" in given
    assert given[-1] == "--config.learning.batch_size=7"
    assert settings.arguments("cifar10", False, []) == given[:1]


@pytest.mark.parametrize("data", ["cifar", "folder", "no/such/folder"])
def test_data_that_are_neither_named_nor_a_folder_are_told(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"--data must be one of \['cifar10', 'digi"):
        settings.arguments(data, False, [])


def test_arguments_of_the_config_are_handed_on_and_others_refused():
    needed = ["--data=digits", "--workdir=w"]
    given, rest = parse([*needed, "--config.seed=3", "--minutes=5"])
    assert (given.data, given.minutes, rest) == ("digits", 5.0, ["--config.seed=3"])
    for wrong in ("--minute=5", "--config.seed", "digits"):
        with pytest.raises(ConfigError, match=f"FIELD=VALUE, got '{wrong}'"):
            parse([*needed, wrong])


@pytest.mark.parametrize("wrong", ["--minutes=-1", "--slice_minutes=0", "--slices=0"])
def test_times_that_cannot_be_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        parse(["--data=digits", "--workdir=w", wrong])
    assert "must be a" in capsys.readouterr().err
