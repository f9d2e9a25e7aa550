"""Runs on made-up images, and that everything which comes of them says so."""

import contextlib
import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import jebm
from experiments import main, options, pictures
from experiments.configs import lsun, nvae_lsun, test
from experiments.data import datasets, fake
from experiments.drawing import figures, samples
from experiments.drawing.figures import FIGURES
from experiments.errors import ConfigError
from experiments.evaluation import evaluate
from experiments.models import model_spec
from experiments.rundir.settings import check_settings, write_settings
from experiments.runs import open_run
from experiments.training import train
from tests.data_files import encoded, put, random_images
from tests.experiments.runs import CONFIG, ROOT, metrics, run_main

LSUN = f"--config={ROOT / 'experiments' / 'configs' / 'lsun.py'}"


def test_made_up_images_are_always_the_same_and_fill_the_range():
    first, again = (fake.make((16, 12, 3), labelled=True) for _ in range(2))
    assert set(first) == {"train", "test"}
    for split, (images, labels) in first.items():
        np.testing.assert_array_equal(images, again[split][0])
        assert images.dtype == np.uint8
        assert images.min() < 30 and images.max() > 225
        assert labels.shape == images.shape[:1]
    seen = {image.tobytes() for images, _ in first.values() for image in images}
    assert len(seen) == 512 + 128


def crimson(file):
    """Whether the top of a picture has the title."""
    with Image.open(file) as picture:
        top = np.asarray(picture.convert("RGB"))[:30].reshape(-1, 3)
    return bool((top == (220, 20, 60)).all(axis=-1).any())


class Blank:
    """A figure of nothing, for those that take long to compile."""

    def compute(self, key, run):
        pass

    def draw(self, results):
        return Figure(figsize=(2, 2))


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """A run on made-up images with all its outputs, and what it printed."""
    path = tmp_path_factory.mktemp("fake") / "run"
    config = test.get_config()
    config.data.name = "fake"
    config.eval.protocol = "ood"
    config.eval.ood.outliers = ("noise", "svhn_cropped")  # which is not there
    config.eval.num_posterior_samples = 1
    experiment, screen = options.read(config), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(screen):
        patch.setenv("TFDS_DATA_DIR", str(path.parent))
        for name, entry in FIGURES.items():
            if name != "training":
                blank = entry._replace(module=Blank(), numbers=None)
                patch.setitem(FIGURES, name, blank)
        patch.setattr(figures, "write_probes", lambda run: run.path / "probes.json")
        patch.setattr(evaluate, "WITH_EVERY", ())
        main.run("train", experiment, path, main.HOOKS)
        samples.sample(experiment, path)
    return path, screen.getvalue()


@pytest.mark.slow
def test_screen_report_and_numbers_say_that_the_images_are_made_up(made_up):
    path, screen = made_up
    label = "FAKE DATA in the shape of digits"
    assert screen.count(f"{label}: the images are made up.") >= 3
    found = json.loads((path / "eval.json").read_text())
    assert found["data"] == label
    page = (path / "report.html").read_text()
    assert f"{label}: nothing here is a result." in page
    assert f"joint EBM prior on {label}" in page
    assert json.loads((path / "config.json").read_text())["data"]["name"] == "fake"


@pytest.mark.slow
def test_every_picture_is_titled(made_up):
    path, _ = made_up
    files = sorted(path.rglob("*.png"))
    kinds = {file.stem.rsplit("_0", 1)[0] for file in files}
    assert {"ebm", "gaussian", "reconstruction", "training", "ood"} <= kinds
    assert set(FIGURES) <= kinds
    assert [file.name for file in files if not crimson(file)] == []


@pytest.mark.slow
def test_pictures_of_other_data_are_left_as_they_are(finished_run, tmp_path):
    files = sorted(finished_run.rglob("*.png"))
    assert len(files) > 5
    assert not any(crimson(file) for file in files)
    run = open_run(options.read(test.get_config()), finished_run)
    assert run.label == ""
    (tmp_path / "one.png").write_bytes(files[0].read_bytes())
    pictures.stamp_all([tmp_path / "one.png"], run.label)
    assert (tmp_path / "one.png").read_bytes() == files[0].read_bytes()
    assert "FAKE" not in (finished_run / "report.html").read_text()
    assert json.loads((finished_run / "eval.json").read_text())["data"] == "digits"


def test_church_without_its_data_ends_at_once_with_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))

    def not_yet(*arguments):
        raise AssertionError("began to build")

    monkeypatch.setattr(train, "build_model", not_yet)
    with pytest.raises(SystemExit) as stopped:
        run_main(LSUN, f"--workdir={tmp_path / 'run'}")
    message = stopped.value.code
    assert "\n" not in message
    assert message.startswith("error: data set 'lsun/church_outdoor' is not prepared")
    for words in (
        str(tmp_path / "data" / "lsun" / "church_outdoor_train_lmdb"),
        "`python -m tools.data.prepare lsun/church_outdoor`",
        "--config.data.name=fake and another --workdir",
    ):
        assert words in message
    assert not (tmp_path / "run").exists()


def test_what_is_told_of_a_run_that_has_begun_can_be_done(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    path, config = tmp_path / "run", test.get_config()
    config.data.name = config.data.fake_like = "mnist"
    write_settings(path, options.read(config), {})
    fields = ("--config.data.name=mnist", "--config.data.fake_like=mnist")
    messages = []
    for arguments in ((CONFIG, *fields), ("--mode=eval",)):
        with pytest.raises(SystemExit) as stopped:
            run_main(*arguments, f"--workdir={path}")
        messages.append(stopped.value.code)
        assert messages[-1].startswith("error: data set 'mnist' is not prepared")
    training, reading = messages
    assert training.endswith("with --config.data.name=fake and another --workdir")
    assert "fake" not in reading
    config.data.name = "fake"
    made_up = options.read(config)
    check_settings(tmp_path / "other", made_up, "train")
    with pytest.raises(ConfigError, match=r"data\.name is mnist there, fake here"):
        check_settings(path, made_up, "train")


def test_outliers_that_are_not_there_are_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    path = tmp_path / "run"
    fields = {"protocol": "ood", "ood.outliers": "('svhn_cropped',)"}
    arguments = [f"--config.eval.{field}={value}" for field, value in fields.items()]
    with pytest.raises(SystemExit) as stopped:
        run_main(CONFIG, f"--workdir={path}", *arguments)
    expected = "error: data set 'svhn_cropped' is not prepared"
    assert stopped.value.code.startswith(expected)
    assert not path.exists()


def test_split_too_small_for_a_batch_is_told_before_any_work(tmp_path):
    folder, path = tmp_path / "mine", tmp_path / "run"
    images = random_images(9, (8, 8))
    put(folder, {f"{i}.png": encoded(image) for i, image in enumerate(images)})
    fields = {"name": "folder", "data_dir": folder, "image_shape": "(8,8,1)"}
    arguments = [f"--config.data.{field}={value}" for field, value in fields.items()]
    with pytest.raises(SystemExit) as stopped:
        run_main(CONFIG, f"--workdir={path}", *arguments)
    expected = "error: learning.batch_size of 20 is more than the 6 images"
    assert stopped.value.code.startswith(expected)
    assert not path.exists()


def test_made_up_images_take_the_shape_of_a_folders(capsys):
    fields = {"name": "fake", "fake_like": "cifar10", "image_shape": (6, 8, 3)}
    data = dataclasses.replace(options.read(lsun.get_config()).data, **fields)
    splits = datasets.load(dataclasses.replace(data, augment=()))
    assert splits["test"].images.shape[1:] == (6, 8, 3)
    told = "FAKE DATA in the shape of 6 x 8 x 3"
    assert datasets.described(data) == told
    assert told in capsys.readouterr().out


@pytest.fixture
def backbone(tmp_path, monkeypatch):
    """An NVAE of church images with a few channels, not trained."""
    first = nvae_lsun.get_config()
    first.backbone.groups = (1, 1)
    first.backbone.latent_channels = 2
    first.backbone.width = first.backbone.encoder_width = 2
    first.backbone.image_halvings = 3
    first.backbone.preprocess_cells = first.backbone.postprocess_cells = 1
    first.backbone.encoder_cells = first.backbone.decoder_cells = 1
    spec = model_spec(options.read(first), (64, 64, 3))
    params = jebm.init(jax.random.key(0), jebm.build(spec))
    jebm.save(tmp_path / "backbone", jebm.build(spec), params)
    return tmp_path / "backbone"


@pytest.mark.slow
def test_church_runs_on_made_up_images(backbone, tmp_path, capsys):
    path = tmp_path / "run"
    overrides = {
        "data.name": "fake",
        "backbone.checkpoint": backbone,
        "energy.channels": 2,
        "energy.widths": (4,),
        "chains.prior.num_steps": 2,
        "learning.batch_size": 4,
        "learning.num_steps": 2,
        "learning.persistent_chains": 8,
        "learning.persistent_steps": 2,
        "log.every": 1,
        "log.checkpoint_every": 2,
        "log.sample_every": 2,
        "log.diagnose_every": 2,
        "log.num_samples": 4,
    }
    arguments = [f"--config.{field}={value}" for field, value in overrides.items()]
    run_main(LSUN, f"--workdir={path}", *arguments)
    assert "FAKE DATA" in capsys.readouterr().out
    assert [line["step"] for line in metrics(path)] == [1, 2]
    found = json.loads((path / "model.json").read_text())
    assert found["image_shape"] == [64, 64, 3]
    assert "FAKE DATA in the shape of lsun/church" in (path / "report.html").read_text()
    data = options.read(lsun.get_config()).data
    assert data.augment == ("flip", "crop")
    assert datasets.described(data) == "lsun/church_outdoor"
