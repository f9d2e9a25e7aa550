import contextlib
import functools

import jax
import numpy as np
import pytest
from scipy import ndimage

from experiments.configs import default
from experiments.data import batches, datasets, decoding, sources
from experiments.data.augment import BENT, MOVED, affine
from experiments.data.batches import Batches
from experiments.data.loaders import Split
from experiments.data.pixels import to_unit
from experiments.errors import ConfigError
from experiments.options import Data
from tests.data_files import encoded, random_images


def load(name="digits", **fields):
    """The splits of a data set, the other fields of config.data as by default."""
    data = default.get_config().data.to_dict() | {"name": name}
    return datasets.load(Data.of(data | fields))


def test_digits_splits_are_the_whole_set_without_an_image_in_both():
    from sklearn.datasets import load_digits

    splits = load()
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
    for images, labels in load().values():
        assert [by_image[image.tobytes()] for image in images] == labels.tolist()


def test_labels_keep_all_images_of_these_classes_and_no_others():
    whole, kept = load(), load(labels=(0, 7))
    for split in ("train", "test"):
        wanted = np.isin(whole[split].labels, (0, 7))
        np.testing.assert_array_equal(kept[split].images, whole[split].images[wanted])
        np.testing.assert_array_equal(kept[split].labels, whole[split].labels[wanted])
        assert set(kept[split].labels.tolist()) == {0, 7}


def test_label_without_images_is_named():
    with pytest.raises(ConfigError, match=r"data\.labels.*\[77\]"):
        load(labels=(0, 77))


def test_to_unit_divides_by_255_in_float32():
    unit = to_unit(np.array([0, 51, 255], np.uint8))
    assert unit.dtype == np.float32
    np.testing.assert_array_equal(unit, np.float32([0, 0.2, 1]))


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("nope", {}, "unknown data set 'nope'; known: .*'celeb_a_hq/256'"),
        ("digits", {"image_shape": (4, 4, 1)}, "data.image_shape needs .* 'folder'"),
        ("digits", {"on_corrupt": "hide"}, "unknown data.on_corrupt 'hide'.*'skip'"),
        ("digits", {"num_workers": -1}, "data.num_workers must be at least 0, got -1"),
        ("digits", {"augment": ("turn",)}, "unknown data.augment 'turn'.*'flip'"),
        ("digits", {"augment": ("crop",)}, "'crop' needs images of many sizes"),
        ("fake", {"fake_like": "mnist", "augment": ("crop",)}, "'crop' needs images"),
        ("fake", {"fake_like": "folder"}, "data.fake_like must be one of"),
    ],
)
def test_fields_that_do_not_fit_are_named(name, fields, words):
    with pytest.raises(ConfigError, match=words):
        load(name, **fields)


# Twelve "images" that are told apart by their only pixel; 3 batches are an epoch.
IMAGES = np.arange(12, dtype=np.uint8).reshape(12, 1, 1, 1)


def numbers(seed, steps):
    batches = Batches(IMAGES, 4, seed)
    return [batches(step)[:, 0, 0, 0].tolist() for step in steps]


def test_batch_has_the_images_shape_and_dtype():
    batch = Batches(np.zeros((12, 5, 6, 3), np.uint8), 4, 0)(0)
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
    batches = Batches(IMAGES, 8, 0)
    seen = np.concatenate([batches(step).ravel() for step in range(3)])  # two epochs
    assert np.bincount(seen).tolist() == [2] * 12
    assert sorted(seen[:12].tolist()) == list(range(12))


def as_set(split):
    return {image.tobytes() for image in split.images}


def test_a_held_out_class_is_tested_with_a_fifth_of_the_others():
    whole, split = load(), load(heldout_class=4)
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
    first = load(heldout_class=4)
    datasets.read.cache_clear()
    again = load(heldout_class=4)
    other = load(heldout_class=5)
    np.testing.assert_array_equal(first["test"].images, again["test"].images)
    assert 4 in other["train"].labels


@pytest.mark.parametrize(("labels", "heldout"), [((), 10), ((0, 7), 4), ((7,), 7)])
def test_a_class_that_cannot_be_held_out_is_refused(labels, heldout):
    with pytest.raises(ConfigError, match=rf"one of several classes, .* got {heldout}"):
        load(labels=labels, heldout_class=heldout)


@pytest.mark.parametrize("kind", ["decoded", "streamed"])
def test_a_class_is_held_out_file_by_file(kind, streamed):
    splits = {
        name: Split(streamed.subset(index), index % 3)
        for name, index in (("train", np.arange(14)), ("test", np.arange(14, 20)))
    }
    if kind == "decoded":
        splits = {k: Split(np.asarray(s.images), s.labels) for k, s in splits.items()}
    held = datasets.hold_out_by_file(splits, 1)
    kept = np.arange(14)[np.arange(14) % 3 != 1]
    tested = [*range(14, 20), *(i for i in range(14) if i % 3 == 1)]
    for name, index in (("train", kept), ("test", np.array(tested))):
        np.testing.assert_array_equal(np.asarray(held[name].images), streamed[index])
        np.testing.assert_array_equal(held[name].labels, index % 3)
    with pytest.raises(ConfigError, match="one of several classes"):
        datasets.hold_out_by_file(splits, 7)


def test_a_held_out_side_of_one_class_is_refused(monkeypatch):
    images = np.zeros((3, 1, 1, 1), np.uint8)
    labels = {"train": np.array([0, 1, 2]), "test": np.ones(3, int)}
    splits = {name: Split(images, each) for name, each in labels.items()}
    with pytest.raises(ConfigError, match="no held-out image is of another class"):
        datasets.hold_out_by_file(splits, 1)
    monkeypatch.setattr(datasets, "read", lambda *_: splits)
    with pytest.raises(ConfigError, match=r"no held-out image is of \[0, 2\]"):
        load(labels=(2, 0))


def test_binary_images_are_drawn_as_their_grey_tells():
    images = np.full((4, 50, 50, 1), 51, np.uint8)  # a fifth of 255
    batches = Batches(images, 4, seed=3, binarize=True)
    first = batches(0)
    assert set(np.unique(first)) == {0, 255}
    share = (first == 255).mean()
    assert abs(share - 0.2) < 4 * np.sqrt(0.2 * 0.8 / first.size)
    np.testing.assert_array_equal(batches(0), first)
    assert (batches(1) != first).any()
    assert (Batches(images, 4, seed=4, binarize=True)(0) != first).any()


def test_binary_test_split_is_always_the_same_and_training_stays_grey():
    grey = load()
    once, again = (load(binarize=True) for _ in range(2))
    assert set(np.unique(once["test"].images)) == {0, 255}
    np.testing.assert_array_equal(once["test"].images, again["test"].images)
    np.testing.assert_array_equal(once["train"].images, grey["train"].images)
    np.testing.assert_array_equal(load()["test"].images, grey["test"].images)


def test_batch_larger_than_all_images_is_refused():
    with pytest.raises(ConfigError, match=r"batch_size of 13 is more than the 12 im"):
        Batches(IMAGES, 13, 0)
    assert Batches(IMAGES, 12, 0)(0).shape == (12, 1, 1, 1)


PHOTOS = random_images(20, (6, 12, 3))  # each with one that is 6 x 6 in it


@pytest.fixture
def streamed():
    """The photos as files, to be cut to 6 x 6."""
    return sources.Streamed(
        sources.Encoded([encoded(photo) for photo in PHOTOS]),
        (6, 6, 3),
        functools.partial(decoding.fit, size=(6, 6)),
    )


def test_streamed_batches_are_those_of_the_decoded_images(streamed):
    decoded = Batches(np.asarray(streamed), 4, 3)
    some = Batches(streamed, 4, 3)
    for step in (0, 1, 2, 9, 3, 4):  # in order, and not
        np.testing.assert_array_equal(some(step), decoded(step))


def test_an_epoch_of_streamed_images_is_never_all_decoded(streamed, monkeypatch):
    read = []
    monkeypatch.setattr(
        sources.Streamed,
        "read",
        lambda self, i, place: read.append(i) or np.zeros((6, 6, 3), np.uint8),
    )
    monkeypatch.setattr(batches, "_THREADS", 1)
    with contextlib.closing(iter(Batches(streamed, 2, 0).dataset(0))) as some:
        next(some)
    assert len(read) < 20


@pytest.mark.parametrize("kind", ["decoded", "streamed"])
def test_processes_share_the_batch_of_one(kind, streamed, monkeypatch):
    images = streamed if kind == "streamed" else np.asarray(streamed)
    options = {"binarize": True, "augment": ("flip", "crop", "affine")}
    alone = Batches(images, 6, 0, **options)
    parts = [
        Batches(images, 6, 0, **options, process_index=i, process_count=3)
        for i in range(3)
    ]
    for step in (0, 1, 5):
        shares = [part(step) for part in parts]
        assert [share.shape for share in shares] == [(2, 6, 6, 3)] * 3
        np.testing.assert_array_equal(np.concatenate(shares), alone(step))
    if kind == "streamed":
        read, original = [], sources.Streamed.read

        def noted(self, i, place):
            read.append(i)
            return original(self, i, place)

        monkeypatch.setattr(sources.Streamed, "read", noted)
        parts[1](0)
        assert read == Batches(np.arange(20), 6, 0)(0)[2:4].tolist()


def test_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ConfigError, match="batch_size of 4 cannot be shared by 3"):
        Batches(IMAGES, 4, 0, process_count=3)


def test_flips_are_drawn_by_seed_step_and_index():
    images = random_images(400, (2, 4, 3))
    plain = Batches(images, 400, 5)
    batches = Batches(images, 400, 5, augment=("flip",))
    flipped = []
    for step in range(2):
        before, after = plain(step), batches(step)
        mirrored = before[:, :, ::-1]
        same = (after == before).all(axis=(1, 2, 3))
        assert ((after == mirrored).all(axis=(1, 2, 3)) ^ same).all()
        assert abs(same.mean() - 0.5) < 4 * 0.5 / np.sqrt(400)
        flipped.append(~same)
    assert (flipped[0] != flipped[1]).any()
    np.testing.assert_array_equal(batches(0), batches(0))


def test_affine_maps_are_drawn_by_seed_step_and_index():
    images = np.repeat(random_images(1, (9, 8, 3)), 40, axis=0)
    batches = Batches(images, 40, 5, augment=("affine",))
    moved = [batches(step) for step in (0, 1, 0)]
    assert moved[0].shape == images.shape and moved[0].dtype == np.uint8
    np.testing.assert_array_equal(moved[0], moved[2])
    both = np.concatenate(moved[:2]).reshape(80, -1)
    assert len(np.unique(both, axis=0)) == 80


def test_affine_without_a_cpu_backend_is_refused(monkeypatch):
    def missing(backend):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", missing)
    with pytest.raises(ConfigError, match=r"'affine'.*JAX_PLATFORMS.*Unknown backend"):
        load(augment=("affine",))


def test_affine_is_a_map_of_the_coordinates():
    images = random_images(20, (9, 8, 2))
    drawn = np.random.default_rng(1).random((20, 2, 3))
    found = affine(images, drawn)
    middle = np.array([4.0, 3.5])
    for image, numbers, moved in zip(images, drawn, found, strict=True):
        off = 2 * numbers - 1
        matrix = np.eye(2) + BENT * off[:, :2]
        offset = middle - matrix @ middle + MOVED * np.array([9, 8]) * off[:, 2]
        for channel in range(2):
            expected = ndimage.affine_transform(
                image[..., channel].astype(float),
                matrix,
                offset,
                order=1,
                mode="nearest",
            )
            assert abs(moved[..., channel] - expected).max() <= 0.5 + 1e-3


def test_crops_are_drawn_by_seed_step_and_index(streamed):
    batches = Batches(streamed, 20, 0, augment=("crop",))
    order = Batches(np.arange(20), 20, 0)
    starts = []
    for step in (0, 1, 0):
        found = []
        for image, photo in zip(batches(step), PHOTOS[order(step)], strict=True):
            windows = [photo[:, left : left + 6] for left in range(7)]
            (left,) = [i for i, w in enumerate(windows) if (w == image).all()]
            found.append(left)
        starts.append(found)
    assert starts[0] == starts[2] != starts[1]
    assert len(set(starts[0] + starts[1])) == 7  # of 40 draws; misses one with p < .02


def test_label_filter_and_binary_pixels_of_streamed_images(monkeypatch, streamed):
    split = datasets.Split(streamed, np.arange(20) % 2)
    loader = lambda options: {"train": split, "test": split}  # noqa: E731
    monkeypatch.setitem(datasets.LOADERS, "photos", loader)
    splits = load("photos", labels=(1,), binarize=True)
    assert len(splits["train"].images) == 10
    np.testing.assert_array_equal(
        np.asarray(splits["train"].images), np.asarray(streamed)[1::2]
    )
    assert set(np.unique(splits["test"].images)) == {0, 255}
    datasets.read.cache_clear()
