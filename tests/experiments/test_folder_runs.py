"""Whole runs on a folder of pictures, from the command line."""

import json

import numpy as np
import pytest

from experiments.data import datasets
from jebm.metrics import efficientnet
from tests import efficientnet_weights
from tests.data_files import encoded, put, random_images
from tests.experiments.runs import CONFIG, run_main, start_main

pytestmark = pytest.mark.slow


def pictures(num):
    images = random_images(num, (8, 8))
    return {f"{i:03}.png": encoded(image) for i, image in enumerate(images)}


@pytest.fixture
def arguments(tmp_path):
    """Of a run on the folder "pictures"."""
    datasets.read.cache_clear()
    fields = {"name": "folder", "data_dir": tmp_path / "pictures"}
    fields |= {"image_shape": "(8,8,1)"}
    changes = [f"--config.data.{field}={value}" for field, value in fields.items()]
    return [CONFIG, f"--workdir={tmp_path / 'run'}", *changes]


def test_a_folder_that_has_changed_is_told_by_all_that_read_the_run(
    tmp_path, arguments, capsys
):
    put(tmp_path / "pictures", pictures(60))
    run_main(*arguments, "--config.learning.num_steps=4")
    assert "have changed" not in capsys.readouterr().out
    put(tmp_path / "pictures", {"!new.png": pictures(61)["060.png"]})
    told = f"have changed since step 0 of {tmp_path / 'run'}: "
    for mode in ("sample", "score"):
        images = [f"--images={tmp_path / 'pictures'}"] if mode == "score" else []
        datasets.read.cache_clear()
        steps = "--config.learning.num_steps=4"
        run_main(*arguments, steps, f"--mode={mode}", *images)
        out = capsys.readouterr().out
        assert out.count(told) == 1 and "files: 60 then, 61 now" in out
    run_main(*arguments, "--config.learning.num_steps=8")
    assert told in capsys.readouterr().out
    run_main(*arguments, "--config.learning.num_steps=8", "--mode=sample")
    assert "have changed" not in capsys.readouterr().out  # since step 4 it knows of it


def test_a_folder_ends_with_numbers_of_its_pictures(
    tmp_path, arguments, monkeypatch, capsys
):
    weights = efficientnet_weights.write(tmp_path / "small.pth")
    monkeypatch.setattr(efficientnet, "default_file", lambda: weights)
    put(tmp_path / "pictures", pictures(60))
    run_main(*arguments, "--config.learning.num_steps=4")
    run_main(arguments[1], "--config.eval.num_samples=320", "--mode=eval")
    printed = capsys.readouterr().out
    (file,) = (tmp_path / "run").glob("eval*.json")
    values = json.loads(file.read_text())
    assert (values["protocol"], values["num_reference"]) == ("features", 60)
    for number in ("frechet", "kid_untilted", "frechet_infinity_posterior"):
        assert f"  {number} " in printed
        assert np.isfinite(values[number])
    assert "These are not FIDs" in printed


@pytest.mark.parametrize("folders", [(".", "."), ("a", "b"), ("a", "b", "c")])
def test_one_picture_a_class_is_enough_for_all_that_is_done(
    tmp_path, arguments, folders
):
    files = pictures(len(folders)).items()
    named = {f"{d}/{name}": p for d, (name, p) in zip(folders, files, strict=True)}
    put(tmp_path / "pictures", named)
    few = {
        "learning.batch_size": 1, "learning.persistent_chains": 2,
        "learning.num_steps": 2, "log.num_samples": 4,
        "eval.protocol": "classifier",  # of which there is none: that takes no time
    }  # fmt: skip
    arguments = arguments[1:]  # the config is there already
    arguments += [f"--config.{field}={value}" for field, value in few.items()]
    measuring = ["--mode=eval", "--config.eval.protocol=ood"]
    scoring = ["--mode=score", f"--images={tmp_path / 'pictures'}"]
    for more in ([], measuring, ["--mode=sample"], scoring):  # a device, for one image
        process = start_main(*arguments, *more)
        printed, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        last = printed.splitlines()[-1]
        assert last == f"Look at {tmp_path / 'run' / 'report.html'}"
    for name in ("figures/latent_planes.png", "eval_ood.json", "scores/pictures.csv"):
        assert (tmp_path / "run" / name).is_file()
