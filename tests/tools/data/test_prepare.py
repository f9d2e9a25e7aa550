"""Files of the published formats, made and served here; no TensorFlow needed."""

import importlib.util
import os
import pathlib
import sys

import numpy as np
import pytest

from experiments.data import datasets, loaders
from experiments.errors import ConfigError
from tests.data_files import (
    FACES,
    NUM,
    celeba_files,
    celeba_hq_tar,
    church_zip,
    cifar10_files,
    idx,
    mnist_files,
    put,
    svhn_files,
)
from tests.tools.serving import serve
from tools.data import prepare
from tools.data.named import named


class WithoutTensorFlow:
    """Finds no TensorFlow, whatever is installed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "tensorflow":
            raise ModuleNotFoundError(name)


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """As where TensorFlow is not installed; and no data is remembered."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "tensorflow" else find_spec(name, *rest),
    )
    monkeypatch.setattr(sys, "meta_path", [WithoutTensorFlow, *sys.meta_path])
    yield
    datasets.read.cache_clear()


@pytest.fixture
def site(monkeypatch):
    with serve() as site:
        monkeypatch.setattr(prepare, "catalogue", lambda name: site.catalogue())
        yield site


@pytest.fixture
def counts(monkeypatch):
    """Sets how many images a data set is to have."""

    def set_counts(name, **counts):
        recipe = prepare.RECIPES[name]
        recipe = prepare.dataclasses.replace(recipe, counts=counts)
        monkeypatch.setitem(prepare.RECIPES, name, recipe)

    return set_counts


def in_order(images, labels):
    """Sorted, since TFDS shuffles what it writes."""
    return sorted(
        (image.tobytes(), int(label))
        for image, label in zip(images, labels, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "make", "num"),
    [
        ("mnist", mnist_files, NUM),
        ("fashion_mnist", mnist_files, NUM),
        ("kmnist", mnist_files, NUM),
        ("cifar10", cifar10_files, {"train": 10, "test": 3}),
        ("svhn_cropped", svhn_files, NUM),
    ],
)
def test_what_was_published_is_what_is_loaded(
    name, make, num, site, counts, tmp_path, capsys
):
    counts(name, **num)
    site.files, expected = make()
    site.cut_after = [20]  # interrupted on the way
    prepare.prepare(name, str(tmp_path))
    said = capsys.readouterr().out
    assert f"{name} is ready in {tmp_path / name}" in said
    splits = datasets.load(named(name, str(tmp_path)))
    for split in num:
        images, labels = splits[split]
        assert images.shape == (num[split], *loaders.SHAPES[name])
        assert in_order(images, labels) == in_order(*expected[split])
    requests = len(site.requests)
    prepare.prepare(name, str(tmp_path))  # is there already
    assert len(site.requests) == requests


def test_other_readers_of_tfds_find_the_data_set(site, counts, tmp_path):
    import tensorflow_datasets as tfds

    counts("cifar10", train=10, test=3)
    site.files, expected = cifar10_files()
    prepare.prepare("cifar10", str(tmp_path))
    source = tfds.data_source("cifar10", split="train", data_dir=tmp_path)
    assert in_order(*zip(*((e["image"], e["label"]) for e in source), strict=True)) == (
        in_order(*expected["train"])
    )
    assert {e["id"] for e in source} == {f"train_{i:05d}".encode() for i in range(10)}
    builder = tfds.builder("cifar10", data_dir=tmp_path, file_format="array_record")
    assert builder.info.features["label"].names == list("abcdefghij")


def test_mnist_is_written_in_the_order_of_tfds(site, counts, tmp_path):
    """The store that TFDS itself wrote, put back into IDX files, comes out the same."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import hashing

    data_dir = os.environ.get("TFDS_DATA_DIR")
    if not data_dir or not (pathlib.Path(data_dir) / "mnist").is_dir():
        pytest.skip("TFDS_DATA_DIR is unset or holds no mnist")
    written = tfds.data_source("mnist", split="test", data_dir=data_dir)
    hasher = hashing.Hasher("test")
    order = np.argsort([hasher.hash_key(i) for i in range(len(written))])
    num = 500  # the first of the published file; they keep their order
    written = [written[j] for j in np.flatnonzero(order < num).tolist()]
    images = np.empty((num, 28, 28), np.uint8)
    labels = np.empty(num, np.uint8)
    for i, example in zip(order[order < num], written, strict=True):
        images[i], labels[i] = example["image"][..., 0], example["label"]
    assert labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]  # as published
    files, _ = mnist_files()
    files["t10k-images-idx3-ubyte.gz"] = idx(images)
    files["t10k-labels-idx1-ubyte.gz"] = idx(labels)
    site.files = files
    counts("mnist", train=NUM["train"], test=len(images))
    prepare.prepare("mnist", str(tmp_path))
    ours = tfds.data_source("mnist", split="test", data_dir=tmp_path)
    for example, other in zip(written, ours, strict=True):
        assert example["label"] == other["label"]
        np.testing.assert_array_equal(example["image"], other["image"])


def test_the_catalogue_has_every_file_that_is_downloaded():
    for name, recipe in prepare.RECIPES.items():
        known = prepare.catalogue(name)
        for file in recipe.files:
            if name == "celeb_a_hq/256":  # none is published
                assert file not in known
                continue
            url, size, sha256 = known[file]
            assert url.startswith("http")
            assert size > 1000
            assert len(sha256) == 64


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: f | {"train-images-idx3-ubyte.gz": idx(np.zeros((7, 28), np.uint8))},
         r"magic number 2050"),
        (lambda f: f | {"train-images-idx3-ubyte.gz": f["t10k-images-idx3-ubyte.gz"]},
         r"\[5, 28, 28\], not"),
    ],
)  # fmt: skip
def test_file_of_another_form_leaves_nothing_prepared(
    damage, words, site, counts, tmp_path
):
    counts("mnist", **NUM)
    site.files = damage(mnist_files()[0])
    with pytest.raises(ConfigError, match=words):
        prepare.prepare("mnist", str(tmp_path))
    assert loaders.prepared("mnist", str(tmp_path)) is None


def test_part_of_a_data_set_is_not_taken_for_it(site, counts, tmp_path):
    counts("cifar10", train=10, test=3)
    site.files, _ = cifar10_files()
    prepare.prepare("cifar10", str(tmp_path))
    counts("cifar10", train=50_000, test=10_000)
    with pytest.raises(
        ConfigError, match=r"has 10 images in split 'train', and 50,000"
    ):
        prepare.prepare("cifar10", str(tmp_path))


def test_celeba_says_what_to_fetch_and_takes_it(site, counts, tmp_path):
    counts("celeb_a", **FACES)
    site.files = files = celeba_files()
    manual = tmp_path / "downloads" / "manual"
    put(manual, {"identity_CelebA.txt": files["identity_CelebA.txt"]})
    with pytest.raises(ConfigError) as raised:
        prepare.prepare("celeb_a", str(tmp_path))
    message = str(raised.value)
    size = f"{len(files['img_align_celeba.zip']):,} bytes"
    for words in ("img_align_celeba.zip", size, "CelebA.html", str(manual)):
        assert words in message
    assert "identity" not in message  # it is there
    put(manual, files | {"list_eval_partition.txt": b"another file"})
    with pytest.raises(ConfigError, match=r"list_eval_partition.txt has 12 bytes"):
        prepare.prepare("celeb_a", str(tmp_path))
    put(manual, files)
    prepare.prepare("celeb_a", str(tmp_path))
    assert not site.requests
    splits = datasets.load(named("celeb_a", str(tmp_path)))
    for split, values in (("train", [0, 20, 40, 60, 80]), ("test", [140, 160, 180])):
        images = splits[split].images
        assert images.shape == (len(values), 64, 64, 3)
        assert sorted(images[:, 30, 30, 0].tolist()) == values
    import tensorflow_datasets as tfds

    example = tfds.data_source("celeb_a", split="test", data_dir=tmp_path)[0]
    assert example["attributes"]["Young"]
    assert not example["attributes"]["Bald"]
    assert example["landmarks"]["nose_x"] == 7
    assert example["identity"]["Identity_No"] == 11


def test_celeba_hq_is_prepared_from_its_tar(counts, tmp_path):
    counts("celeb_a_hq/256", train=20)
    with pytest.raises(
        ConfigError, match=r"by hand: data256x256.tar. Get them from https://"
    ):
        prepare.prepare("celeb_a_hq/256", str(tmp_path))
    put(tmp_path / "downloads" / "manual", {"data256x256.tar": celeba_hq_tar()})
    prepare.prepare("celeb_a_hq/256", str(tmp_path))
    splits = datasets.load(named("celeb_a_hq/256", str(tmp_path)))
    assert splits["train"].images.shape == (18, 256, 256, 3)
    assert splits["test"].images.shape == (2, 256, 256, 3)  # a tenth
    both = {i.tobytes() for split in splits.values() for i in split.images}
    assert len(both) == 20


def test_damaged_image_in_the_tar_is_an_error_or_left_out(counts, tmp_path, capsys):
    counts("celeb_a_hq/256", train=100)
    tar = celeba_hq_tar(100, damaged=[77])
    put(tmp_path / "downloads" / "manual", {"data256x256.tar": tar})
    with pytest.raises(ConfigError, match=r"00078.png cannot be read.*on_corrupt=skip"):
        prepare.prepare("celeb_a_hq/256", str(tmp_path))
    assert loaders.prepared("celeb_a_hq/256", str(tmp_path)) is None
    prepare.prepare("celeb_a_hq/256", str(tmp_path), on_corrupt="skip")
    assert "Left out: 1" in capsys.readouterr().err
    splits = datasets.load(named("celeb_a_hq/256", str(tmp_path)))
    assert len(splits["train"].images) == 89


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_tar_that_is_cut_off_is_refused(share, counts, tmp_path):
    counts("celeb_a_hq/256", train=20)
    tar = celeba_hq_tar()
    tar = tar[: int(share * len(tar))]
    put(tmp_path / "downloads" / "manual", {"data256x256.tar": tar})
    with pytest.raises(ConfigError, match=r"cut off|cannot be read|not 20"):
        prepare.prepare("celeb_a_hq/256", str(tmp_path))
    assert loaders.prepared("celeb_a_hq/256", str(tmp_path)) is None


def test_church_is_unpacked_and_read_as_it_is_published(site, counts, tmp_path, capsys):
    name = "lsun/church_outdoor"
    counts(name, train=12, val=4)
    made = tmp_path / "made"
    made.mkdir()
    site.files = {
        f"church_outdoor_{part}_lmdb.zip": church_zip(made, part, num)
        for part, num in (("train", 12), ("val", 4))
    }
    site.cut_after = [1000]
    data_dir = tmp_path / "data"
    prepare.prepare(name, str(data_dir))
    splits = datasets.load(named(name, str(data_dir)))
    assert splits["train"].images.shape == (12, 64, 64, 3)
    assert splits["test"].images.shape == (4, 64, 64, 3)
    requests = len(site.requests)
    prepare.prepare(name, str(data_dir))
    assert len(site.requests) == requests
    counts(name, train=13, val=4)
    with pytest.raises(ConfigError, match="has 12 images, and 13 are published"):
        prepare.prepare(name, str(data_dir))


def test_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown data set 'nope'.*'kmnist'"):
        prepare.prepare("nope")


def test_command_ends_in_one_line(tmp_path, monkeypatch, capsys):
    arguments = ["prepare_data", "celeb_a_hq/256", f"--data_dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        prepare.main()
    assert stopped.value.code.startswith("error: celeb_a_hq/256 needs files that")
    assert "\n" not in stopped.value.code
    monkeypatch.setattr(sys, "argv", ["prepare_data", "digits"])
    prepare.main()
    assert "digits needs no preparation" in capsys.readouterr().out
