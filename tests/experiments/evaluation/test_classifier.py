import doctest
import functools
import hashlib
import json
import shutil

import jax
import numpy as np
import pytest

from experiments.data.loaders import LOADERS, Options, Split
from experiments.data.pixels import to_unit
from experiments.errors import ConfigError
from experiments.evaluation import classifier
from tests.experiments.data.test_loaders import load_or_skip
from tools.data import train_classifier

NAMES = ["digits", "fashion_mnist", "mnist"]
NUM_FEATURES = {"digits": 32, "fashion_mnist": 64, "mnist": 64}
TOOL = "`python -m tools.data.train_classifier --data={}`"

load = functools.cache(classifier.load)


def test_committed_classifiers_are_these():
    assert sorted(p.stem for p in classifier.DIRECTORY.glob("*.npz")) == NAMES
    assert sorted(p.stem for p in classifier.DIRECTORY.glob("*.json")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_file_is_small_and_the_one_that_its_json_describes(name):
    content = (classifier.DIRECTORY / f"{name}.npz").read_bytes()
    assert len(content) < 700_000
    facts = load(name)[1]
    assert facts["file"] == f"{name}.npz"
    assert facts["sha256"] == hashlib.sha256(content).hexdigest()
    assert facts["num_features"] == NUM_FEATURES[name]


@pytest.mark.parametrize(
    ("name", "least"), [("digits", 0.97), ("fashion_mnist", 0.91), ("mnist", 0.992)]
)
def test_stated_accuracy_is_that_on_the_held_out_split(name, least):
    images, labels = load_or_skip(name)["test"]
    network, params, facts = classifier.read(name)
    logits = classifier.outputs(network, params, to_unit(images))
    accuracy = (logits.argmax(-1) == labels).mean()
    assert facts["num_held_out"] == len(labels)
    # Another machine's rounding may turn the class of one image.
    assert abs(accuracy - facts["accuracy"]) <= 1 / len(labels)
    assert facts["accuracy"] >= least


@pytest.mark.parametrize("name", NAMES)
def test_parameters_have_the_shapes_of_the_stated_layers(name):
    network, params, facts = classifier.read(name)
    images = np.zeros((1, *facts["image_shape"]), np.float32)
    expected = jax.eval_shape(network.init, jax.random.key(0), images)
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, expected)


def test_features_are_the_activations_below_the_logits():
    images = to_unit(LOADERS["digits"](Options())["test"].images[:5])
    network, params, _ = classifier.read("digits")
    features = load("digits")[0](images)
    assert features.shape == (5, 32)
    assert features.dtype == np.float32
    head = params["params"]["head"]
    logits = classifier.outputs(network, params, images)
    np.testing.assert_allclose(
        features @ head["kernel"] + head["bias"][None], logits, rtol=1e-4, atol=1e-4
    )


def test_features_do_not_depend_on_how_the_images_are_batched_or_padded():
    images = to_unit(LOADERS["digits"](Options())["test"].images)
    features = load("digits")[0]
    whole = features(images)  # a full batch, and one that is padded
    assert classifier.BATCH_SIZE < len(images) == len(whole)
    parts = np.concatenate([features(images[:1]), features(images[1:])])
    np.testing.assert_allclose(parts, whole, rtol=1e-5, atol=1e-6)


def test_no_number_of_images_compiles_anew():
    features = load("digits")[0]
    features(np.zeros((1, 8, 8, 1)))
    compiled = classifier._apply._cache_size()
    for num in (2, 300, 600):
        features(np.zeros((num, 8, 8, 1), np.float32))
    classifier.load("digits")[0](np.zeros((3, 8, 8, 1)))
    assert classifier._apply._cache_size() == compiled


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.zeros((3, 28, 28, 1)), r"images must be float \[N >= 1, 8, 8, 1\]"),
        (np.zeros((8, 8, 1)), r"got float64 \(8, 8, 1\)"),
        (np.zeros((0, 8, 8, 1)), "images must be float"),
        (np.zeros((3, 8, 8, 1), np.uint8), "got uint8"),
        (np.full((3, 8, 8, 1), 255.0), r"images must be in \[0, 1\]"),
        (np.full((3, 8, 8, 1), np.nan), r"images must be in \[0, 1\]"),
    ],
)
def test_other_images_are_refused(images, words):
    with pytest.raises(ValueError, match=words):
        load("digits")[0](images)


def config_error_of(*arguments):
    with pytest.raises(ConfigError) as raised:
        classifier.load(*arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_data_set_without_classifier_is_answered_with_the_known_and_the_command():
    message = config_error_of("cifar10")
    assert all(repr(name) in message for name in ["cifar10", *NAMES])
    assert TOOL.format("cifar10") in message


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("suffix", "damage"),
    [
        (".npz", flip_a_byte),
        (".npz", truncate),
        (".npz", lambda path: path.unlink()),
        (".json", truncate),
    ],
)
def test_damaged_file_is_refused(tmp_path, suffix, damage):
    for file in classifier.DIRECTORY.glob("digits.*"):
        shutil.copy(file, tmp_path)
    classifier.load("digits", tmp_path)
    damage(tmp_path / f"digits{suffix}")
    message = config_error_of("digits", tmp_path)
    assert str(tmp_path / "digits.npz") in message
    assert TOOL.format("digits") in message


def test_examples_of_the_docstrings():
    assert doctest.testmod(classifier).failed == 0


SHORT = train_classifier.SETTINGS["digits"]._replace(
    widths=(4,), num_features=3, num_steps=60, batch_size=32, learning_rate=1e-2
)


@pytest.fixture
def short(monkeypatch):
    """Lets the tool train for a few steps, and optax promote as `lenient_optimizer`."""
    monkeypatch.setitem(train_classifier.SETTINGS, "digits", SHORT)
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.usefixtures("short")
def test_tool_writes_what_loads(tmp_path, capsys):
    out = tmp_path / "new"
    train_classifier.main(["--data=digits", "--seed=3", f"--out={out}"])
    features, facts = classifier.load("digits", out)
    assert features(np.ones((2, 8, 8, 1), np.float32)).shape == (2, 3)
    assert facts["accuracy"] > 0.2  # twice what guessing gives
    assert f"{facts['accuracy']:.2%}" in capsys.readouterr().out
    written = json.loads((out / "digits.json").read_text())
    assert written["command"] == f"{TOOL.format('digits').strip('`')} --seed=3"
    assert (written["seed"], written["num_steps"]) == (3, SHORT.num_steps)


@pytest.mark.usefixtures("short")
def test_tool_gives_the_same_bits_for_a_seed_and_others_for_another(tmp_path):
    def digest(seed, name):
        train_classifier.main(
            ["--data=digits", f"--seed={seed}", f"--out={tmp_path / name}"]
        )
        return classifier.load("digits", tmp_path / name)[1]["sha256"]

    assert digest(0, "a") == digest(0, "b") != digest(1, "c")


def test_tool_answers_an_unknown_data_set_with_the_known_ones(tmp_path):
    with pytest.raises(SystemExit) as stopped:
        train_classifier.main(["--data=nope", f"--out={tmp_path / 'new'}"])
    message = stopped.value.code
    assert message.startswith("error: ")
    assert "\n" not in message
    assert all(repr(name) in message for name in ["nope", *LOADERS])
    assert not (tmp_path / "new").exists()


def test_tool_refuses_a_data_set_without_classes(tmp_path, monkeypatch):
    unlabelled = Split(np.zeros((4, 8, 8, 1), np.uint8), np.zeros(4, int))
    splits = {"train": unlabelled, "test": unlabelled}
    monkeypatch.setitem(LOADERS, "unlabelled", lambda data_dir: splits)
    with pytest.raises(SystemExit, match="error: data set 'unlabelled' has one class"):
        train_classifier.main(["--data=unlabelled", f"--out={tmp_path}"])


def test_shifted_moves_each_image_by_some_pixels_and_loses_nothing_inside():
    images = np.zeros((200, 7, 7, 1), np.float32)
    images[:, 3, 3] = 1  # two pixels and more from every edge
    moved = np.asarray(train_classifier.shifted(jax.random.key(0), images, 2))
    assert moved.shape == images.shape
    assert (moved.sum((1, 2, 3)) == 1).all()
    _, rows, columns, _ = moved.nonzero()
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == {
        (row, column) for row in range(1, 6) for column in range(1, 6)
    }


@pytest.mark.parametrize("name", ["folder", "celeb_a", "fake", "cifar10"])
def test_what_to_do_without_a_classifier_can_be_done(name):
    sentence = classifier.absent(name)
    assert ("train_classifier --data=cifar10" in sentence) == (name == "cifar10")
    assert ("eval.protocol=ood" in sentence) == (name != "cifar10")
