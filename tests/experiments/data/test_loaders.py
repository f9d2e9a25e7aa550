"""Every data set, from small files of the formats that they are published in."""

import functools
import os
import pathlib

import numpy as np
import pytest

from experiments.data import datasets, loaders
from experiments.data.batches import Batches
from experiments.data.loaders import LOADERS, SHAPES, Options
from experiments.errors import ConfigError
from tests.data_files import (
    FACES,
    NUM,
    celeba_files,
    celeba_hq_tar,
    church_zip,
    cifar10_files,
    encoded,
    mnist_files,
    put,
    random_images,
    svhn_files,
)
from tests.experiments.evaluation.saved import experiment_of
from tests.tools.serving import serve
from tools.data import prepare
from tools.data.named import named

FOLDER_SHAPE = (12, 16, 3)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A directory in which everything is prepared."""
    root = tmp_path_factory.mktemp("data")
    made = tmp_path_factory.mktemp("made")
    church = {
        f"church_outdoor_{part}_lmdb.zip": church_zip(made, part, num)
        for part, num in (("train", 8), ("val", 4))
    }
    hq = {"data256x256.tar": celeba_hq_tar()}
    published = {
        "mnist": (mnist_files()[0], NUM),
        "fashion_mnist": (mnist_files()[0], NUM),
        "kmnist": (mnist_files()[0], NUM),
        "cifar10": (cifar10_files()[0], {"train": 10, "test": 3}),
        "svhn_cropped": (svhn_files()[0], NUM),
        "celeb_a": (celeba_files(), FACES),
        "celeb_a_hq/256": (hq, {"train": 20}),
        "lsun/church_outdoor": (church, {"train": 8, "val": 4}),
    }
    with pytest.MonkeyPatch.context() as patch, serve() as site:
        patch.setattr(prepare, "catalogue", lambda name: site.catalogue())
        for name, (files, counts) in published.items():
            recipe = prepare.RECIPES[name]
            recipe = prepare.dataclasses.replace(recipe, counts=counts)
            patch.setitem(prepare.RECIPES, name, recipe)
            site.files = files
            put(root / "downloads" / "manual", files)
            prepare.prepare(name, str(root))
    folder = root / "folder"
    for i, image in enumerate(random_images(60, (20, 30, 3))):
        file = folder / ("" if i % 2 else "below") / f"{i}.png"
        put(file.parent, {file.name: encoded(image)})
    return root


def options_of(name, data_dir):
    if name == "folder":
        return Options(str(data_dir / "folder"), image_shape=FOLDER_SHAPE)
    return Options(str(data_dir), fake_like="celeb_a")


@pytest.mark.parametrize("streamed", [False, True], ids=["in memory", "streamed"])
@pytest.mark.parametrize("name", sorted(LOADERS))
def test_contract_of_a_data_set(name, streamed, data_dir, monkeypatch, capsys):
    options = options_of(name, data_dir)
    if streamed:
        monkeypatch.setattr(loaders, "_IN_MEMORY", 0)
    splits = LOADERS[name](options)
    assert set(splits) == {"train", "test"}
    shape = {"folder": FOLDER_SHAPE, "fake": SHAPES["celeb_a"]} | SHAPES
    seen = {}
    for split, (images, labels) in splits.items():
        assert images.shape == (len(images), *shape[name])
        assert (images.ndim, images.dtype) == (4, np.uint8)
        assert labels.shape == images.shape[:1]
        assert np.issubdtype(labels.dtype, np.integer)
        pixels = np.asarray(images)
        assert isinstance(pixels, np.ndarray)
        np.testing.assert_array_equal(images[:3], pixels[:3])
        np.testing.assert_array_equal(images[[1, 0]], pixels[[1, 0]])
        np.testing.assert_array_equal(images[np.arange(2)], pixels[:2])
        seen[split] = {image.tobytes() for image in pixels}
        again = LOADERS[name](options)[split]
        np.testing.assert_array_equal(np.asarray(again.images), pixels)
        np.testing.assert_array_equal(again.labels, labels)
    assert not seen["train"] & seen["test"]
    assert len(seen["train"]) > 1
    batch = Batches(splits["train"].images, 4, 0)(1)
    assert batch.shape == (4, *shape[name])
    assert {image.tobytes() for image in batch} <= seen["train"]


@pytest.mark.parametrize("name", sorted(set(LOADERS) - {"digits", "fake", "folder"}))
def test_data_that_is_not_there_says_how_to_get_it(name, tmp_path):
    with pytest.raises(ConfigError) as raised:
        LOADERS[name](Options(str(tmp_path)))
    message = str(raised.value)
    assert "\n" not in message
    command = f"`python -m tools.data.prepare {name} --data_dir={tmp_path}`"
    for words in (command, "TFDS_DATA_DIR"):
        assert words in message
    assert "fake" not in message  # training alone can be tried on made-up images
    with pytest.raises(ConfigError, match="is not prepared"):
        loaders.require(name, Options(str(tmp_path)))


@pytest.mark.parametrize("name", sorted(LOADERS))
def test_data_that_is_there_is_not_refused(name, data_dir):
    loaders.require(name, options_of(name, data_dir))


def test_the_newest_version_is_that_of_the_largest_numbers(tmp_path):
    names = ["3.0.9", "3.0.10", "2.11.0", "3.0.11.incompleteAB", "3.0", "a.b.c"]
    put(tmp_path / "mnist", {f"{name}/dataset_info.json": b"{}" for name in names})
    assert loaders.prepared("mnist", str(tmp_path)).name == "3.0.10"


def test_every_data_set_is_known_to_the_tool_and_has_a_shape():
    own = {"digits", "folder", "fake"}
    assert set(LOADERS) - own == set(prepare.RECIPES)
    assert set(LOADERS) - {"folder", "fake"} == set(SHAPES)


@functools.cache
def load_or_skip(name):
    data_dir = os.environ.get("TFDS_DATA_DIR")
    if not data_dir or not (pathlib.Path(data_dir) / name).is_dir():
        pytest.skip(f"TFDS_DATA_DIR is unset or holds no {name}")
    return datasets.load(named(name))


def test_mnist_has_its_published_sizes_and_mean():
    splits = load_or_skip("mnist")
    assert splits["train"].images.shape == (60000, 28, 28, 1)
    assert splits["test"].images.shape == (10000, 28, 28, 1)
    train_counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test_counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(splits["train"].labels).tolist() == train_counts
    assert np.bincount(splits["test"].labels).tolist() == test_counts
    assert abs(splits["train"].images.mean() / 255 - 0.1307) < 1e-4


def test_cifar10_is_read_in_colour():
    splits = load_or_skip("cifar10")
    for images, labels in splits.values():
        assert images.shape[1:] == (32, 32, 3)
        assert np.unique(labels).tolist() == list(range(10))
        assert np.ptp(images, axis=-1).mean() > 10


@pytest.fixture
def tfrecord_dir():
    """Data that TFDS has prepared as TFRecords, beside TFDS_DATA_DIR."""
    data_dir = f"{os.environ.get('TFDS_DATA_DIR', '')}_tfrecord"
    if not pathlib.Path(data_dir, "mnist").is_dir():
        pytest.skip("there is no mnist in the TFRecord format beside TFDS_DATA_DIR")
    return data_dir


def test_tfrecords_are_read_where_tensorflow_is(tfrecord_dir):
    pytest.importorskip("tensorflow", reason="reading TFRecords needs TensorFlow")
    splits = LOADERS["mnist"](Options(tfrecord_dir))
    for split, found in load_or_skip("mnist").items():
        np.testing.assert_array_equal(splits[split].images, found.images)
        np.testing.assert_array_equal(splits[split].labels, found.labels)


def test_tfrecords_without_tensorflow_say_what_to_do(tfrecord_dir, monkeypatch):
    monkeypatch.setattr(loaders.sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tfrecord, which needs TensorFlow: `pip"):
        LOADERS["mnist"](Options(tfrecord_dir))


def test_faces_are_the_square_of_larsen_scaled_down():
    from PIL import Image

    image = np.zeros((218, 178, 3), np.uint8)
    image[40:188, 15:163] = 200
    face = np.asarray(loaders._face(Image.fromarray(image), 0.5))
    np.testing.assert_array_equal(face, np.full((64, 64, 3), 200, np.uint8))
    image[40:114, 15:89, 1] = 100  # a quarter of the square, green only
    face = np.asarray(loaders._face(Image.fromarray(image), 0.5))
    assert face[:31, :31, 1].max() == 100
    assert face[33:, :, 1].min() == face[:, 33:, 1].min() == 200
    assert face[..., 0].min() == face[..., 2].min() == 200


def folder_options(folder, **more):
    return Options(str(folder), image_shape=(6, 8, 3), **more)


def test_folder_of_all_kinds_of_pictures(tmp_path, capsys):
    sizes = [(6, 8), (60, 80), (9, 30), (30, 9), (3, 4)]
    put(tmp_path, {
        f"{i}{kind}": encoded(random_images(1, (*sizes[i % 5], *channels))[0], name)
        for i, (kind, name, channels) in enumerate([
            (".png", "png", (3,)), (".JPG", "jpeg", (3,)), (".webp", "webp", (3,)),
            (".png", "png", ()), (".bmp", "bmp", (3,)), (".tif", "tiff", (4,)),
        ])
    })  # fmt: skip
    put(tmp_path, {"notes.txt": b"no image", "README": b"", "data.csv": b"1,2"})
    splits = LOADERS["folder"](folder_options(tmp_path))
    num = {name: len(split.images) for name, split in splits.items()}
    assert num == {"train": 4, "test": 2}
    assert {split.images.shape[1:] for split in splits.values()} == {(6, 8, 3)}
    assert "README, data.csv, notes.txt" in capsys.readouterr().out
    grey = Options(str(tmp_path), image_shape=(5, 5, 1))
    assert LOADERS["folder"](grey)["train"].images.shape == (4, 5, 5, 1)


@pytest.mark.parametrize("streamed", [False, True])
def test_damaged_files_of_a_folder(streamed, tmp_path, capsys, monkeypatch):
    if streamed:
        monkeypatch.setattr(loaders, "_IN_MEMORY", 0)
    images = random_images(20, (6, 8, 3))
    put(tmp_path, {f"{i:02}.png": encoded(image) for i, image in enumerate(images)})
    whole = LOADERS["folder"](folder_options(tmp_path))
    put(tmp_path, {"07.png": b"a text, by another name"})
    (tmp_path / "11.png").unlink()
    (tmp_path / "11.png").symlink_to("nowhere")
    with pytest.raises(ConfigError, match=r"(07|11).png cannot be read"):
        splits = LOADERS["folder"](folder_options(tmp_path))
        np.asarray(splits["train"].images), np.asarray(splits["test"].images)
    splits = LOADERS["folder"](folder_options(tmp_path, on_corrupt="skip"))
    seen = [np.asarray(splits[split].images) for split in ("train", "test")]
    assert sum(map(len, seen)) == (20 if streamed else 18)
    assert len({image.tobytes() for part in seen for image in part}) == 18
    assert "Left out: 1" in capsys.readouterr().err
    kept = {image.tobytes() for image in whole["test"].images}
    assert {
        image.tobytes() for image in seen[1]
    } <= kept  # the others stay where they are


def test_a_picture_more_moves_nobody(tmp_path):
    images = random_images(200, (6, 8, 3))
    put(tmp_path, {f"{i:03}.png": encoded(image) for i, image in enumerate(images)})

    def sides():
        splits = LOADERS["folder"](folder_options(tmp_path))
        return [{i.tobytes() for i in splits[name].images} for name in splits]

    training, others = sides()
    put(tmp_path, {"!new.png": encoded(random_images(1, (6, 8, 3), seed=1)[0])})
    again = sides()
    assert training <= again[0] and others <= again[1]
    assert sum(map(len, again)) == 201


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "2 images are needed, and .* has 0"),
        ({"a.txt": b""}, "has 0"),
        ({"a.png": encoded(random_images(1, (4, 4, 3))[0])}, "has 1"),
        ({"a.png": b"", "b.png": b""}, "none of 1 images can be read"),
    ],
)
def test_folder_without_images_is_refused(files, words, tmp_path, capsys):
    put(tmp_path, files)
    with pytest.raises(ConfigError, match=words):
        LOADERS["folder"](folder_options(tmp_path, on_corrupt="skip"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(), r"needs data\.data_dir"),
        (Options("somewhere"), r"needs .* data\.image_shape"),
        (Options("/nowhere", (4, 4, 3)), "/nowhere is not a folder"),
        (Options(".", (4, 4)), r"1 or 3 channels\), got \(4, 4\)"),
        (Options(".", (4, 0, 3)), r"got \(4, 0, 3\)"),
        (Options(".", (4, 4, 2)), r"got \(4, 4, 2\)"),
    ],
)
def test_folder_says_what_it_needs(options, words):
    with pytest.raises(ConfigError, match=words):
        LOADERS["folder"](options)


@pytest.mark.parametrize("like", sorted(SHAPES))
def test_made_up_images_have_the_shape_and_classes_of_the_others(like):
    splits = LOADERS["fake"](Options(fake_like=like))
    for images, labels in splits.values():
        assert images.shape[1:] == SHAPES[like]
        classes = 1 if like in loaders.UNLABELLED else 10
        assert np.unique(labels).tolist() == list(range(classes))
    images, labels = splits["train"]
    if like not in loaders.UNLABELLED:  # images of one class are alike
        images = images.reshape(len(images), -1).astype(float)
        means = np.stack([images[labels == c].mean(axis=0) for c in range(10)])
        near = ((images[:, None] - means) ** 2).sum(axis=-1).argmin(axis=1)
        assert (near == labels).mean() > 0.9


def test_made_up_images_of_one_shape_differ_between_data_sets():
    first, other = (
        LOADERS["fake"](Options(fake_like=like))["test"].images
        for like in ("cifar10", "svhn_cropped")
    )
    assert (first != other).any(axis=(1, 2, 3)).all()


def test_made_up_images_are_like_a_known_data_set():
    with pytest.raises(ConfigError, match=r"data.fake_like must be one of .*'mnist'"):
        LOADERS["fake"](Options(fake_like="folder"))


@pytest.fixture
def animals(tmp_path):
    """Dogs are white and cats are black, in folders of those names."""
    for name, grey in (("dogs", 255), ("cats", 0)):
        picture = encoded(np.full((6, 8, 3), grey, np.uint8))
        put(tmp_path, {f"{name}/{i:02}.png": picture for i in range(20)})
    return tmp_path


@pytest.mark.parametrize("streamed", [False, True])
def test_class_folders_give_labels(animals, capsys, streamed):
    splits = LOADERS["folder"](folder_options(animals, streamed=streamed))
    assert f"Classes of {animals}: 0 cats, 1 dogs\n" in capsys.readouterr().out
    assert sum(len(split.labels) for split in splits.values()) == 40
    for images, labels in splits.values():
        np.testing.assert_array_equal(np.asarray(images)[:, 0, 0, 0], labels * 255)


def test_class_folders_keep_their_labels_where_images_are_skipped(animals):
    (animals / "cats" / "03.png").write_bytes(b"damaged")
    splits = LOADERS["folder"](folder_options(animals, on_corrupt="skip"))
    assert sum(len(split.labels) for split in splits.values()) == 39
    for images, labels in splits.values():
        np.testing.assert_array_equal(images[:, 0, 0, 0], labels * 255)


def test_class_of_a_folder_is_held_out(animals):
    data = experiment_of(**{
        "data.name": "folder", "data.data_dir": str(animals),
        "data.image_shape": (6, 8, 3), "data.heldout_class": 1,
    }).data  # fmt: skip
    splits = datasets.load(data)
    assert set(splits["train"].labels) == {0}
    assert sum(splits["test"].labels == 1) == 20
    assert not np.asarray(splits["train"].images).any()


def test_folders_without_classes_have_one_label(tmp_path, capsys):
    picture = encoded(random_images(1, (6, 8, 3))[0])
    put(tmp_path, {f"{name}.png": picture for name in ("0", "a/1", "b/2")})
    splits = LOADERS["folder"](folder_options(tmp_path))
    assert not any(split.labels.any() for split in splits.values())
    assert "Classes" not in capsys.readouterr().out
