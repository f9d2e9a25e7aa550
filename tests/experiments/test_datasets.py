import functools
import importlib.util
import os
import pathlib

import numpy as np
import pytest

from experiments import datasets
from experiments.command_line import ConfigError

TFDS_NAMES = {
    "mnist": "mnist",
    "cifar10": "cifar10",
    "svhn": "svhn_cropped",
    "celeba64": "celeb_a",
}
IMAGE_SHAPES = {
    "digits": (8, 8, 1),
    "mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "svhn": (32, 32, 3),
    "celeba64": (64, 64, 3),
}


@functools.cache
def load_or_skip(name):
    if name != "digits":
        data_dir = os.environ.get("TFDS_DATA_DIR")
        if not data_dir or not (pathlib.Path(data_dir) / TFDS_NAMES[name]).is_dir():
            pytest.skip(f"TFDS_DATA_DIR is unset or holds no {TFDS_NAMES[name]}")
    return datasets.load(name)


@pytest.mark.parametrize("name", sorted(datasets.LOADERS))
def test_every_data_set_has_uint8_images_with_a_label_each(name):
    splits = load_or_skip(name)
    assert set(splits) == {"train", "test"}
    for images, labels in splits.values():
        assert images.ndim == 4
        assert images.dtype == np.uint8
        assert (images.min(), images.max()) == (0, 255)
        assert np.issubdtype(labels.dtype, np.integer)
        assert labels.shape == images.shape[:1]
        assert images.shape[1:] == IMAGE_SHAPES[name]
    assert set(splits["train"].labels.tolist()) == set(splits["test"].labels.tolist())


def test_mnist_has_its_published_sizes_and_mean():
    splits = load_or_skip("mnist")
    assert splits["train"].images.shape == (60000, 28, 28, 1)
    assert splits["test"].images.shape == (10000, 28, 28, 1)
    train_counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test_counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(splits["train"].labels).tolist() == train_counts
    assert np.bincount(splits["test"].labels).tolist() == test_counts
    assert abs(splits["train"].images.mean() / 255 - 0.1307) < 1e-4


class Source(list):
    """Examples with the batched read of a TFDS data source."""

    def __getitems__(self, keys):
        return [self[key] for key in keys]


@pytest.fixture
def fake_tfds(monkeypatch):
    """TFDS with examples of random pixels, in the structure of the true features."""
    import tensorflow_datasets as tfds

    def as_data_source(builder, split):
        rng = np.random.default_rng(len(split))
        features = builder.info.features

        def example(i):
            image = rng.integers(0, 256, features["image"].shape, np.uint8)
            others = {"label": np.int64(i % 10)} if "label" in features else {}
            return {"image": image, **others}

        return Source(example(i) for i in range({"train": 25, "test": 12}[split]))

    monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", lambda self: True)
    monkeypatch.setattr(datasets, "_READ_TOGETHER", 10)
    with tfds.testing.mock_data(as_data_source_fn=as_data_source):
        yield as_data_source
    datasets.read.cache_clear()


@pytest.mark.parametrize("name", sorted(TFDS_NAMES))
def test_tfds_loaders_read_the_structure_of_tfds_without_its_data(name, fake_tfds):
    import tensorflow_datasets as tfds

    datasets.read.cache_clear()
    splits = datasets.load(name)
    assert set(splits) == {"train", "test"}
    builder = tfds.builder(TFDS_NAMES[name])
    for split, num in (("train", 25), ("test", 12)):
        images, labels = splits[split]
        assert images.shape == (num, *IMAGE_SHAPES[name])
        assert images.dtype == np.uint8
        assert labels.dtype == np.int64
        if name == "celeba64":  # has no classes
            assert labels.tolist() == [0] * num
            continue
        assert labels.tolist() == [i % 10 for i in range(num)]
        raw = [example["image"] for example in fake_tfds(builder, split)]
        np.testing.assert_array_equal(images, raw)


def test_faces_are_the_central_square_of_celeba_scaled_down():
    image = np.zeros((218, 178, 3), np.uint8)
    image[39:179, 19:159] = 200
    face = datasets._celeba_face(image)
    np.testing.assert_array_equal(face, np.full((64, 64, 3), 200, np.uint8))
    image[39:109, 19:89, 1] = 100  # a quarter of the square, green only
    face = datasets._celeba_face(image)
    assert face[:31, :31, 1].max() == 100
    assert face[33:, :, 1].min() == face[:, 33:, 1].min() == 200
    assert face[..., 0].min() == face[..., 2].min() == 200


def test_digits_splits_are_the_whole_set_without_an_image_in_both():
    from sklearn.datasets import load_digits

    splits = datasets.load("digits")
    train, test = splits["train"].images, splits["test"].images
    assert train.shape == (1437, 8, 8, 1)
    assert test.shape == (360, 8, 8, 1)
    whole = np.round(load_digits().images * (255 / 16)).astype(np.uint8)
    both = np.concatenate([train, test])

    def sorted_rows(images):
        return sorted(image.tobytes() for image in images)

    assert sorted_rows(both) == sorted_rows(whole)
    assert len(set(sorted_rows(both))) == len(both)  # so disjoint by value as well


def test_digits_labels_belong_to_their_images():
    from sklearn.datasets import load_digits

    data = load_digits()
    by_image = {
        np.round(image * (255 / 16)).astype(np.uint8).tobytes(): label
        for image, label in zip(data.images, data.target, strict=True)
    }
    for images, labels in datasets.load("digits").values():
        assert [by_image[image.tobytes()] for image in images] == labels.tolist()


def test_labels_keep_all_images_of_these_classes_and_no_others():
    whole, kept = datasets.load("digits"), datasets.load("digits", labels=(0, 7))
    for split in ("train", "test"):
        wanted = np.isin(whole[split].labels, (0, 7))
        np.testing.assert_array_equal(kept[split].images, whole[split].images[wanted])
        np.testing.assert_array_equal(kept[split].labels, whole[split].labels[wanted])
        assert set(kept[split].labels.tolist()) == {0, 7}


def test_label_without_images_is_named():
    with pytest.raises(ConfigError, match=r"data\.labels.*\[77\]"):
        datasets.load("digits", labels=(0, 77))


def test_to_unit_divides_by_255_in_float32():
    unit = datasets.to_unit(np.array([0, 51, 255], np.uint8))
    assert unit.dtype == np.float32
    np.testing.assert_array_equal(unit, np.float32([0, 0.2, 1]))


def test_unprepared_data_without_tensorflow_says_what_to_do(tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "tensorflow" else find_spec(name, *rest),
    )
    with pytest.raises(ConfigError) as raised:
        datasets.load("mnist", data_dir=str(tmp_path))
    message = str(raised.value)
    assert "\n" not in message
    for words in (str(tmp_path), "TFDS_DATA_DIR", "`pip install tensorflow`"):
        assert words in message


# Twelve "images" that are told apart by their only pixel; 3 batches are an epoch.
IMAGES = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1)


def numbers(seed, steps):
    batches = datasets.Batches(IMAGES, 4, seed)
    return [batches(step)[:, 0, 0, 0].tolist() for step in steps]


def test_batch_has_the_images_shape_and_dtype():
    batch = datasets.Batches(np.zeros((12, 5, 6, 3), np.uint8), 4, 0)(0)
    assert batch.shape == (4, 5, 6, 3)
    assert batch.dtype == np.uint8


def test_batch_depends_on_seed_and_step_alone():
    in_order = numbers(3, range(9))
    assert numbers(3, [8, 2, 5]) == [in_order[i] for i in (8, 2, 5)]


def test_every_epoch_holds_every_image_once():
    for epoch in range(4):
        seen = np.ravel(numbers(0, range(3 * epoch, 3 * epoch + 3)))
        assert sorted(seen) == list(range(12))


def test_order_differs_between_epochs_and_between_seeds():
    first, second = numbers(0, range(3)), numbers(0, range(3, 6))
    assert first != second
    assert first != numbers(1, range(3))
    assert np.ravel(first).tolist() != list(range(12))  # shuffled at all


def test_batches_go_on_across_the_end_of_an_epoch():
    batches = datasets.Batches(IMAGES, 8, 0)
    seen = np.concatenate([batches(step).ravel() for step in range(3)])  # two epochs
    assert np.bincount(seen).tolist() == [2] * 12
    assert sorted(seen[:12].tolist()) == list(range(12))


def as_set(split):
    return {image.tobytes() for image in split.images}


def test_a_held_out_class_is_tested_with_a_fifth_of_the_others():
    whole, split = datasets.load("digits"), datasets.load("digits", heldout_digit=4)
    labels = np.concatenate([whole[name].labels for name in ("train", "test")])
    normals = int((labels != 4).sum())
    assert len(split["train"].labels) == int(0.8 * normals)
    assert 4 not in split["train"].labels
    assert (split["test"].labels == 4).sum() == (labels == 4).sum()
    assert (split["test"].labels != 4).sum() == normals - int(0.8 * normals)
    # Every image is in one of the two, and its label has come along.
    together = as_set(split["train"]) | as_set(split["test"])
    assert together == as_set(whole["train"]) | as_set(whole["test"])
    assert not as_set(split["train"]) & as_set(split["test"])
    of_image = {
        image.tobytes(): label
        for part in whole.values()
        for image, label in zip(*part, strict=True)
    }
    for image, label in zip(*split["test"], strict=True):
        assert of_image[image.tobytes()] == label


def test_the_held_out_split_is_always_the_same():
    first = datasets.load("digits", heldout_digit=4)
    datasets.read.cache_clear()
    again = datasets.load("digits", heldout_digit=4)
    other = datasets.load("digits", heldout_digit=5)
    np.testing.assert_array_equal(first["test"].images, again["test"].images)
    assert 4 in other["train"].labels


@pytest.mark.parametrize(("labels", "heldout"), [((), 10), ((0, 7), 4), ((7,), 7)])
def test_a_class_that_cannot_be_held_out_is_refused(labels, heldout):
    with pytest.raises(ConfigError, match=rf"one of several classes, .* got {heldout}"):
        datasets.load("digits", labels=labels, heldout_digit=heldout)


def test_binary_images_are_drawn_as_their_grey_tells():
    images = np.full((4, 50, 50, 1), 51, np.uint8)  # a fifth of 255
    batches = datasets.Batches(images, 4, seed=3, binarize=True)
    first = batches(0)
    assert set(np.unique(first)) == {0, 255}
    share = (first == 255).mean()
    assert abs(share - 0.2) < 4 * np.sqrt(0.2 * 0.8 / first.size)
    np.testing.assert_array_equal(batches(0), first)
    assert (batches(1) != first).any()
    assert (datasets.Batches(images, 4, seed=4, binarize=True)(0) != first).any()


def test_binary_test_split_is_always_the_same_and_training_stays_grey():
    grey = datasets.load("digits")
    once, again = (datasets.load("digits", binarize=True) for _ in range(2))
    assert set(np.unique(once["test"].images)) == {0, 255}
    np.testing.assert_array_equal(once["test"].images, again["test"].images)
    np.testing.assert_array_equal(once["train"].images, grey["train"].images)
    np.testing.assert_array_equal(
        datasets.load("digits")["test"].images, grey["test"].images
    )
