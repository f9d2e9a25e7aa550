import json
import sys

import jax
import pytest

from tools.speed import pipeline as pipeline_speed


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    """No data is prepared."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(pipeline_speed, "_NUM_FILES", 16)


def test_prepared_images_are_told_from_made_ones():
    found = pipeline_speed.measure("digits", seconds=0.05)
    assert found["pipeline_images_per_second"] > 1000
    assert (found["data"], found["source"]) == ("digits", "prepared")
    found = pipeline_speed.measure("nvae_cifar10", seconds=0.05)
    assert (found["data"], found["source"]) == ("cifar10", "made")
    assert found["batch_size"] == 256


@pytest.mark.parametrize("name", ["celeba64", "celeba_hq256_paper", "lsun"])
def test_large_images_are_decoded_from_files_of_the_published_format(name):
    found = pipeline_speed.measure(name, seconds=0.05)
    assert found["source"] == "made"
    assert found["pipeline_images_per_second"] > 0


def test_pipeline_is_held_against_the_train_step():
    found = pipeline_speed.measure("test", seconds=0.05, num_steps=2)
    assert found["step_images_per_second"] > 0
    rates = found["pipeline_images_per_second"], found["step_images_per_second"]
    assert found["pipeline_over_step"] == rates[0] / rates[1]
    assert found["batch_size"] % jax.local_device_count() == 0


def test_command_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        pipeline_speed.measure, "__defaults__", (0.05, 0)
    )  # the seconds to read for
    file = tmp_path / "speed.json"
    arguments = ["pipeline_speed", "--only", "digits", "test", f"--json={file}"]
    monkeypatch.setattr(sys, "argv", arguments)
    pipeline_speed.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["digits", "digits", "prepared"],
        ["test", "digits", "prepared"],
    ]
    found = json.loads(file.read_text())
    assert [entry["config"] for entry in found] == ["digits", "test"]
