"""Images of a data set: its splits, and the classes that are kept."""

import functools

import numpy as np

from experiments.data import fake, sources
from experiments.data.augment import AUGMENTATIONS, cpu_device
from experiments.data.loaders import CROPPED, LOADERS, Options, Split
from experiments.data.pixels import draw_binary
from experiments.errors import ConfigError
from jebm.names import unknown_name_message


def load(
    name: str,
    data_dir: str | None = None,
    labels: tuple[int, ...] = (),
    heldout_digit: int | None = None,
    binarize: bool = False,
    image_shape: tuple[int, int, int] | None = None,
    fake_like: str | None = None,
    augment: tuple[str, ...] = (),
    on_corrupt: str = "error",
    num_workers: int = 0,
) -> dict[str, Split]:
    """Loads the splits "train" and "test"; the arguments are the fields of config.data.

    Args:
      name: a key of `LOADERS`.
      data_dir: where prepared data lies; None for TFDS_DATA_DIR or TFDS's default.
      labels: keep the images of these classes only; empty keeps all.
      heldout_digit: a class that training does not see, see `hold_out`; None for none.
      binarize: makes each pixel of "test" black or white, once; those of "train" are
        drawn anew for each of their `Batches`.
      image_shape: (H, W, C) of "folder".
      fake_like: the data set whose shape and classes "fake" has.
      augment: of `AUGMENTATIONS`; `Batches` apply them.
      on_corrupt: what to do at an image that cannot be read, see `sources.Streamed`.
      num_workers: of `Batches`.

    Raises:
      ConfigError: for an unknown name (the message lists the known ones), data that is
        not prepared, classes of which there is no image, or fields that do not fit.
    """
    _check_fields(name, image_shape, on_corrupt, num_workers)
    _check_augment(augment, fake_like if name == "fake" else name)
    options = Options(data_dir, image_shape, fake_like, on_corrupt, "crop" in augment)
    splits = dict(read(name, options))
    if name == "fake":
        print(f"{fake.LABEL}: the images are made up, in the shape of {fake_like!r}.")
    if labels:
        splits = _keep_classes(name, splits, labels)
    if heldout_digit is not None:
        splits = hold_out(splits, heldout_digit)
    if binarize:
        rng, test = np.random.default_rng(0), splits["test"]
        images = draw_binary(rng, np.asarray(test.images))
        splits["test"] = test._replace(images=images)
    return splits


def _check_fields(name, image_shape, on_corrupt, num_workers):
    if name not in LOADERS:
        raise ConfigError(unknown_name_message("data set", name, LOADERS))
    if image_shape is not None and name != "folder":
        raise ConfigError(f"data.image_shape is of data.name 'folder', not of {name!r}")
    if on_corrupt not in sources.ON_CORRUPT:
        raise ConfigError(
            unknown_name_message("data.on_corrupt", on_corrupt, sources.ON_CORRUPT)
        )
    if num_workers < 0:
        raise ConfigError(f"data.num_workers must be at least 0, got {num_workers}")


def _check_augment(augment, name):
    """Checks that images of the data set `name` can be changed so."""
    for kind in augment:
        if kind not in AUGMENTATIONS:
            raise ConfigError(unknown_name_message("data.augment", kind, AUGMENTATIONS))
    if "affine" in augment:
        cpu_device()
    if "crop" in augment and name not in CROPPED:
        raise ConfigError(
            f"data.augment 'crop' is of images of many sizes, {CROPPED}; those of "
            f"{name!r} are all of one"
        )


def _keep_classes(name, splits, labels):
    """Keeps the images of these classes in both splits."""
    if missing := set(labels) - _classes(splits):
        raise ConfigError(f"data.labels: {name!r} has no images of {sorted(missing)}")
    return {k: _keep(s, np.isin(s.labels, labels)) for k, s in splits.items()}


def _classes(splits):
    return set(splits["train"].labels.tolist())


@functools.lru_cache(maxsize=1)  # training and its figures read the same images
def read(name: str, options: Options) -> dict[str, Split]:
    """Reads all of the data set `name`, and keeps it until another is read."""
    return LOADERS[name](options)


def described(data) -> str:
    """Names the data set for readers; of fake data, what is imitated as well."""
    if data["name"] != "fake":
        return data["name"]
    return f"{fake.LABEL} in the shape of {data['fake_like']}"


def hold_out(splits: dict[str, Split], heldout: int) -> dict[str, Split]:
    """Splits anew for anomaly detection: one class is held out of training.

    Of all images of both splits, 80% of those of the other classes are for training;
    the remaining 20% and all images of the class are for testing. The choice is fixed,
    and no image is in both.

    Raises:
      ConfigError: if training has no such class, or no other.
    """
    known = _classes(splits)
    if heldout not in known or len(known) == 1:
        raise ConfigError(
            f"data.heldout_digit must be one of several classes, {sorted(known)}, "
            f"got {heldout}"
        )
    pool = Split(*map(np.concatenate, zip(*splits.values(), strict=True)))
    order = np.random.RandomState(42).permutation(len(pool.labels))
    normal = order[pool.labels[order] != heldout]
    anomalous = order[pool.labels[order] == heldout]
    num_train = int(0.8 * len(normal))
    return {
        "train": _keep(pool, normal[:num_train]),
        "test": _keep(pool, np.concatenate([normal[num_train:], anomalous])),
    }


def _keep(split, index):
    images = split.images
    if isinstance(images, sources.Streamed):
        return Split(images.subset(index), split.labels[index])
    return Split(images[index], split.labels[index])
