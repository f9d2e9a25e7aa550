"""Images of a data set: its splits, and the classes that are kept."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.data import fake, sources
from experiments.data.augment import AUGMENTATIONS, cpu_device
from experiments.data.loaders import CROPPED, LOADERS, Options, Split
from experiments.data.pixels import draw_binary
from experiments.errors import ConfigError
from experiments.options import Data
from jebm.names import unknown_name_message


def load(data: Data) -> dict[str, Split]:
    """Loads the splits "train" and "test" of config.data.

    With `heldout_class` training does not see a class, see `hold_out`; with `binarize`
    each pixel of "test" is black or white, drawn once, and those of "train" are drawn
    anew by their `Batches`, which apply `augment` too.

    Raises:
      ConfigError: for an unknown name (the message lists the known ones), data that is
        not prepared, classes of which there is no image, or fields that do not fit.
    """
    _check(data)
    options = Options(
        data.data_dir, data.image_shape, data.fake_like, data.on_corrupt,
        "crop" in data.augment,
    )  # fmt: skip
    splits = dict(read(data.name, options))
    if data.is_fake:
        print(f"{described(data)}: the images are made up.")
    if data.labels:
        splits = _keep_classes(data.name, splits, data.labels)
    if data.heldout_class is not None:
        divide = hold_out_by_file if data.name == "folder" else hold_out
        splits = divide(splits, data.heldout_class)
    if data.binarize:
        rng, test = np.random.default_rng(0), splits["test"]
        images = draw_binary(rng, test.images)
        splits["test"] = test._replace(images=images)
    return splits


def _check(data):
    """Refuses fields that do not fit, before anything is read."""
    name = data.name
    if name not in LOADERS:
        raise ConfigError(unknown_name_message("data set", name, LOADERS))
    if data.image_shape is not None and name not in ("folder", "fake"):
        raise ConfigError(
            f"data.image_shape needs data.name 'folder' or 'fake', got {name!r}"
        )
    for kind in data.augment:
        if kind not in AUGMENTATIONS:
            raise ConfigError(unknown_name_message("data.augment", kind, AUGMENTATIONS))
    if "affine" in data.augment:
        cpu_device()
    source = data.fake_like if data.is_fake else name
    if "crop" in data.augment and source not in CROPPED:
        raise ConfigError(
            f"data.augment 'crop' needs images of many sizes, those of {CROPPED}; all "
            f"images of {name!r} have one size"
        )


def _keep_classes(name, splits, labels):
    """Keeps the images of these classes in both splits."""
    if missing := set(labels) - _classes(splits):
        raise ConfigError(f"data.labels: {name!r} has no images of {sorted(missing)}")
    kept = {k: _keep(s, np.isin(s.labels, labels)) for k, s in splits.items()}
    if not len(kept["test"].labels):
        raise ConfigError(f"data.labels: no held-out image is of {sorted(labels)}")
    return kept


def _classes(splits):
    return set(splits["train"].labels.tolist())


@functools.lru_cache(maxsize=1)  # training and its figures read the same images
def read(name: str, options: Options) -> dict[str, Split]:
    """Reads all of the data set `name`, and keeps it until another is read."""
    return LOADERS[name](options)


def described(data: Data | Mapping[str, Any]) -> str:
    """Names the data set for readers; of fake data, what is imitated as well.

    `data` may be the dict of a config.json.
    """
    fields = dataclasses.asdict(data) if isinstance(data, Data) else data
    if fields["name"] != "fake":
        return fields["name"]
    shape = fields.get("image_shape")  # older runs have none
    like = " x ".join(map(str, shape)) if shape else fields["fake_like"]
    return f"{fake.LABEL} in the shape of {like}"


def hold_out(splits: dict[str, Split], heldout: int) -> dict[str, Split]:
    """Splits anew for anomaly detection: one class is held out of training.

    Of all images of both splits, 80% of those of the other classes are for training;
    the remaining 20% and all images of the class are for testing. The choice is fixed,
    and no image is in both.

    Raises:
      ConfigError: if training has no such class, or no other.
    """
    _check_class(splits, heldout)
    pool = Split(*map(np.concatenate, zip(*splits.values(), strict=True)))
    order = np.random.RandomState(42).permutation(len(pool.labels))
    normal = order[pool.labels[order] != heldout]
    anomalous = order[pool.labels[order] == heldout]
    num_train = int(0.8 * len(normal))
    return {
        "train": _keep(pool, normal[:num_train]),
        "test": _keep(pool, np.concatenate([normal[num_train:], anomalous])),
    }


def hold_out_by_file(splits: dict[str, Split], heldout: int) -> dict[str, Split]:
    """Moves all images of a class to "test"; the others stay on their side.

    So one more picture in a folder moves no other one.

    Raises:
      ConfigError: as `hold_out`.
    """
    _check_class(splits, heldout)
    train, test = splits["train"], splits["test"]
    if np.all(test.labels == heldout):
        raise ConfigError(
            f"data.heldout_class {heldout}: no held-out image is of another class"
        )
    anomalous = _keep(train, train.labels == heldout)
    labels = np.concatenate([test.labels, anomalous.labels])
    images: np.ndarray | sources.Streamed
    if isinstance(test.images, sources.Streamed):
        images = test.images.joined(anomalous.images)
    else:
        images = np.concatenate([test.images, anomalous.images])
    return {
        "train": _keep(train, train.labels != heldout),
        "test": Split(images, labels),
    }


def _check_class(splits, heldout):
    """Refuses a class that training does not have, and the only one."""
    known = _classes(splits)
    if heldout not in known or len(known) == 1:
        raise ConfigError(
            "data.heldout_class must be one of several classes, and training has "
            f"{sorted(known)}, got {heldout}"
        )


def _keep(split, index):
    images = split.images
    if isinstance(images, sources.Streamed):
        return Split(images.subset(index), split.labels[index])
    return Split(images[index], split.labels[index])
