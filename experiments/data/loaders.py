"""The data sets, one loader each.

To add one, write a loader `(options) -> {"train": Split, "test": Split}` with images
uint8 [N, H, W, C], an array or `sources.Streamed`, and labels int [N], all 0 where
there are no classes; enter it in `LOADERS`, and its shape in `SHAPES`.
"""

import functools
import logging
import os
import pathlib
import re
import zlib
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from experiments.data import fake, sources
from experiments.data.decoding import fit
from experiments.data.folders import class_of, classes, held_out, list_pictures
from experiments.errors import ConfigError
from experiments.runtime.files import readable

_CLASSES_TOLD = 20
_IN_MEMORY = 2**30  # bytes; a larger split is decoded as it is read

SHAPES = {
    "digits": (8, 8, 1),
    "mnist": (28, 28, 1),
    "fashion_mnist": (28, 28, 1),
    "kmnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "svhn_cropped": (32, 32, 3),
    "celeb_a": (64, 64, 3),
    "celeb_a_hq/256": (256, 256, 3),
    "lsun/church_outdoor": (64, 64, 3),
}
UNLABELLED = ("celeb_a", "celeb_a_hq/256", "lsun/church_outdoor")
CROPPED = ("lsun/church_outdoor", "folder")  # of many sizes


class Split(NamedTuple):
    """Images and labels of one split."""

    images: np.ndarray | sources.Streamed  # uint8 [N, H, W, C]
    labels: np.ndarray  # int [N]


class Options(NamedTuple):
    """Fields of config.data that a loader may need."""

    data_dir: str | None = None
    image_shape: tuple[int, int, int] | None = None
    fake_like: str | None = None
    on_corrupt: str = "error"
    streamed: bool = False  # decode nothing beforehand


def data_directory(data_dir: str | None) -> epath.Path:
    """Returns where data lies: data_dir, TFDS_DATA_DIR, or the default of TFDS."""
    path = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return epath.Path(path).expanduser()


class Unprepared(ConfigError):
    """A published data set is not there."""


def unprepared(name: str, options: Options, where) -> Unprepared:
    """Returns the error that explains how to get data that is not there."""
    chosen = f" --data_dir={options.data_dir}" if options.data_dir else ""
    return Unprepared(
        f"data set {name!r} is not prepared: there is no {where}. Prepare it by "
        f"`python -m tools.data.prepare {name}{chosen}`, or set TFDS_DATA_DIR (or "
        "config.data.data_dir) to where it is"
    )


def prepared(name: str, data_dir: str | None) -> epath.Path | None:
    """Finds the newest version of a data set in the layout of TFDS, if there is one."""
    infos = (data_directory(data_dir) / name).glob("*/dataset_info.json")
    versions = {}  # 3.0.10 after 3.0.9; what TFDS is still writing has another name
    for info in infos:
        if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name):
            versions[tuple(map(int, info.parent.name.split(".")))] = info.parent
    return versions[max(versions)] if versions else None


def require(name: str, options: Options) -> None:
    """Refuses a published data set that is not there, without reading it.

    Raises:
      ConfigError: telling how to get it.
    """
    if name == "lsun/church_outdoor":
        for part in ("train", "val"):
            _church_database(part, options)
    elif name in SHAPES and name != "digits" and not prepared(name, options.data_dir):
        raise unprepared(name, options, data_directory(options.data_dir) / name)


def _tfds(name):
    """Makes a loader of the TFDS data set `name`."""

    def load_splits(options):
        builder = tfds_builder(name, options)
        splits = {}
        for split in ("train", "test"):
            if name in UNLABELLED:
                encoded, labels = sources.records(builder, split), None
            else:
                encoded, labels = sources.labelled_records(builder, split)
            images = streamed(name, encoded, options)
            splits[split] = _settled(images, options, labels)
        return splits

    return load_splits


def tfds_builder(name: str, options: Options):
    """Returns the TFDS builder that reads a data set.

    Raises:
      ConfigError: where it is not prepared.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # advice about OpenCV
    import tensorflow_datasets as tfds

    require(name, options)
    return tfds.builder_from_directory(prepared(name, options.data_dir))


def streamed(name: str, encoded, options: Options) -> sources.Streamed:
    """Cuts the images of an encoded source as those of the data set `name` are."""
    shape = options.image_shape or SHAPES[name]
    return sources.Streamed(encoded, shape, cut_of(name, shape), options.on_corrupt)


def cut_of(name: str, shape: tuple[int, int, int]) -> sources.Cut:
    """Returns what brings the photographs of the data set `name` to a shape."""
    if name == "celeb_a" and shape == SHAPES[name]:
        return _face
    return functools.partial(fit, size=(shape[1], shape[0]))


def _settled(images, options, labels=None):
    """Makes a split of images, decoded once where it is small."""
    labels = np.zeros(len(images), int) if labels is None else labels
    if options.streamed or np.prod(images.shape, dtype=float) > _IN_MEMORY:
        return Split(images, labels)
    decoded, kept = images.all()
    if not len(kept):
        raise ConfigError(f"none of {len(images)} images can be read")
    return Split(decoded, labels[kept])


def _digits(options):
    """Loads scikit-learn's 8x8 digits, 1,437 for training and 360 held out."""
    del options  # they ship with scikit-learn
    from sklearn import datasets, model_selection

    data = datasets.load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)[..., None]
    train, test = model_selection.train_test_split(
        np.arange(len(images)), test_size=0.2, random_state=0, stratify=data.target
    )
    return {
        "train": Split(images[train], data.target[train]),
        "test": Split(images[test], data.target[test]),
    }


def _face(image: Image.Image, place: float) -> Image.Image:
    """Cuts 148 x 148 of CelebA's 178 x 218 pixels around the face, scaled to 64 x 64.

    The crop of Larsen et al. (arXiv 1512.09300), taken over by NVAE and VAEBM. Pictures
    of another size, which somebody scores, are none of CelebA's: these are cut as any.
    """
    if image.size == (178, 218):
        image = image.crop((15, 40, 163, 188))
    return fit(image, place, (64, 64))


def _celeba_hq(options):
    """Loads CelebA-HQ; it is published in one split: we hold out the last 3,000."""
    name = "celeb_a_hq/256"
    encoded = sources.records(tfds_builder(name, options), "train")
    return _held_out(streamed(name, encoded, options), options, 3000 / 30000)


def _church(options):
    """Loads LSUN's churches; its 300 validation images are the held-out ones."""
    name, splits = "lsun/church_outdoor", {}
    for split, part in (("train", "train"), ("test", "val")):
        encoded = sources.Lmdb(_church_database(part, options))
        splits[split] = _settled(streamed(name, encoded, options), options)
    return splits


def _church_database(part, options):
    name = "lsun/church_outdoor"
    path = data_directory(options.data_dir) / f"{name}_{part}_lmdb"
    if not (path / "data.mdb").exists():
        raise unprepared(name, options, path)
    return path


def _folder(options):
    """Loads the pictures in and below a folder, and holds out about a tenth."""
    if options.data_dir is None or options.image_shape is None:
        raise ConfigError(
            "data.name 'folder' needs data.data_dir, the folder, and data.image_shape, "
            "height, width and channels that its images are brought to"
        )
    shape = options.image_shape
    if len(shape) != 3 or min(shape) < 1 or shape[2] not in (1, 3):
        raise ConfigError(
            f"data.image_shape must be (height, width, 1 or 3 channels), got {shape}"
        )
    folder = pathlib.Path(options.data_dir).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"data.data_dir {folder} is not a folder")
    listing = list_pictures(folder)
    if listing.left_out:
        print(listing.left_out)
    if len(listing.names) < 2:
        raise ConfigError(f"2 images are needed, and {folder} has {len(listing.names)}")
    images = streamed("folder", sources.Files(folder, listing.names), options)
    labels = _labels_of(listing)
    return {
        split: _settled(images.subset(index), options, labels[index])
        for split, index in zip(
            ("train", "test"), held_out(listing.names, 1 / 10), strict=True
        )
    }


def _labels_of(listing):
    """Returns each picture's class, that of its folder, and prints the classes."""
    found = {name: i for i, name in enumerate(classes(listing.names))}
    if not found:
        return np.zeros(len(listing.names), int)
    told = [f"{i} {name}" for name, i in found.items()]
    more = ", ..." if told[_CLASSES_TOLD:] else ""
    told = ", ".join(told[:_CLASSES_TOLD])
    print(readable(f"Classes of {listing.folder}: {told}{more}"))
    return np.array([found[class_of(name)] for name in listing.names])


def _held_out(images, options, share):
    """Makes two splits of one: the last images, this share of them, are held out."""
    num_train = len(images) - max(1, round(share * len(images)))
    index = np.arange(len(images))
    return {
        "train": _settled(images.subset(index[:num_train]), options),
        "test": _settled(images.subset(index[num_train:]), options),
    }


def _fake(options):
    """Makes images up as of another data set, or of `image_shape`, always the same."""
    like = options.fake_like
    if like not in SHAPES:
        raise ConfigError(
            f"data.fake_like must be one of {sorted(SHAPES)}, got {like!r}"
        )
    seed = zlib.crc32(like.encode())  # each has its own
    shape = options.image_shape or SHAPES[like]
    made = fake.make(shape, like not in UNLABELLED, seed)
    return {name: Split(*split) for name, split in made.items()}


LOADERS = {
    "digits": _digits,
    "mnist": _tfds("mnist"),
    "fashion_mnist": _tfds("fashion_mnist"),
    "kmnist": _tfds("kmnist"),
    "cifar10": _tfds("cifar10"),
    "svhn_cropped": _tfds("svhn_cropped"),
    "celeb_a": _tfds("celeb_a"),
    "celeb_a_hq/256": _celeba_hq,
    "lsun/church_outdoor": _church,
    "folder": _folder,
    "fake": _fake,
}
