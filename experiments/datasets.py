"""Images as arrays, and batches as a function of (seed, step).

To add a data set, write a loader `(data_dir) -> {split: (images, labels)}` with
images uint8 [N, H, W, C] and labels int [N], all 0 where there are no classes, and
enter it in `LOADERS`.
"""

import functools
import importlib.util
import logging
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiments.command_line import ConfigError

_READ_TOGETHER = 1000  # examples of a TFDS data set


class Split(NamedTuple):
    """Images and labels of one split."""

    images: np.ndarray  # uint8 [N, H, W, C]
    labels: np.ndarray  # int [N]


def load(
    name: str,
    data_dir: str | None = None,
    labels: tuple[int, ...] = (),
    heldout_digit: int | None = None,
    binarize: bool = False,
) -> dict[str, Split]:
    """Loads the splits "train" and "test"; the arguments are the fields of config.data.

    Args:
      name: a key of `LOADERS`.
      data_dir: where TFDS finds prepared data; None for TFDS_DATA_DIR or its default.
      labels: keep the images of these classes only; empty keeps all.
      heldout_digit: a class that training does not see, see `hold_out`; None for none.
      binarize: makes each pixel of "test" black or white, once; those of "train" are
        drawn anew for each of their `Batches`.

    Raises:
      ConfigError: for an unknown name (the message lists the known ones), data that is
        neither prepared nor can be, or classes of which there is no image.
    """
    if name not in LOADERS:
        raise ConfigError(f"unknown data set {name!r}; known: {sorted(LOADERS)}")
    splits = dict(read(name, data_dir))
    known = set(splits["train"].labels.tolist())
    if missing := set(labels) - known:
        raise ConfigError(f"data.labels: {name!r} has no images of {sorted(missing)}")
    if labels:
        known = set(labels)
        splits = {k: _keep(s, np.isin(s.labels, labels)) for k, s in splits.items()}
    if heldout_digit is not None:
        if heldout_digit not in known or len(known) == 1:
            raise ConfigError(
                f"data.heldout_digit must be one of several classes, {sorted(known)}, "
                f"got {heldout_digit}"
            )
        splits = hold_out(splits, heldout_digit)
    if binarize:
        rng, test = np.random.default_rng(0), splits["test"]
        splits["test"] = test._replace(images=draw_binary(rng, test.images))
    return splits


@functools.lru_cache(maxsize=1)  # training and its figures read the same images
def read(name: str, data_dir: str | None) -> dict[str, Split]:
    """All of the data set `name`, kept in memory until another is asked for."""
    return LOADERS[name](data_dir)


def hold_out(splits: dict[str, Split], heldout: int) -> dict[str, Split]:
    """The split for anomaly detection: one class held out of training.

    Of all images of both splits, 80% of those of the other classes are for training;
    the remaining 20% and all images of the class are for testing. The choice is fixed,
    and no image is in both.
    """
    pool = Split(*map(np.concatenate, zip(*splits.values(), strict=True)))
    order = np.random.RandomState(42).permutation(len(pool.labels))
    normal = order[pool.labels[order] != heldout]
    anomalous = order[pool.labels[order] == heldout]
    num_train = int(0.8 * len(normal))
    return {
        "train": _keep(pool, normal[:num_train]),
        "test": _keep(pool, np.concatenate([normal[num_train:], anomalous])),
    }


def draw_binary(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """Images of pixels 0 and 255, each 255 with the probability that its grey tells."""
    return np.where(rng.random(images.shape) < images / 255, 255, 0).astype(np.uint8)


def _keep(split, index):
    return Split(split.images[index], split.labels[index])


def to_unit(images: jax.Array) -> jax.Array:
    """uint8 pixels to float32 in [0, 1], the one place where images are scaled."""
    return images.astype(jnp.float32) / 255


class Batches:
    """Random-access batches of shuffled images, reshuffled every epoch.

    `batches(step)` depends on (seed, step) alone: nothing to save, nothing to restore.
    With `binarize` each pixel is drawn black or white, anew at every step.
    """

    def __init__(
        self, images: np.ndarray, batch_size: int, seed: int, binarize: bool = False
    ):
        self._images, self._batch_size = images, batch_size
        self._seed, self._binarize = seed, binarize
        order = grain.MapDataset.range(len(images)).seed(seed).shuffle()
        self._order = order.repeat()

    def __call__(self, step: int) -> np.ndarray:
        """Returns the images of the batch of `step`, uint8 [B, H, W, C]."""
        start = step * self._batch_size
        order = [self._order[start + i] for i in range(self._batch_size)]
        if not self._binarize:
            return self._images[order]
        rng = np.random.default_rng((self._seed, step))
        return draw_binary(rng, self._images[order])


def _digits(data_dir):
    """scikit-learn's 8x8 digits, 1,437 for training and 360 held out."""
    del data_dir  # ships with scikit-learn
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


def _tfds(name, convert=lambda image: image):
    """A loader of the TFDS data set `name`; `convert` maps each of its images."""

    def load_splits(data_dir):
        builder = _tfds_builder(name, data_dir)
        return {
            split: _read_tfds(builder, split, convert) for split in ("train", "test")
        }

    return load_splits


def _tfds_builder(name, data_dir):
    logging.getLogger("absl").setLevel(logging.ERROR)  # advice about OpenCV
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    if not builder.is_prepared():
        if importlib.util.find_spec("tensorflow") is None:
            raise ConfigError(
                f"data set {name!r} is not prepared in {builder.data_path}: set "
                "TFDS_DATA_DIR (or config.data.data_dir) to where it is, or "
                "`pip install tensorflow` so that it can be downloaded and prepared"
            )
        builder.download_and_prepare()
    return builder


def _read_tfds(builder, split, convert):
    source = builder.as_data_source(split)
    shape = convert(np.zeros(builder.info.features["image"].shape, np.uint8)).shape
    images = np.empty((len(source), *shape), np.uint8)
    labels = np.zeros(len(source), np.int64)
    # Together they read faster than one by one; all of CelebA at once would take 20 GB.
    for start in range(0, len(source), _READ_TOGETHER):
        indices = range(start, min(start + _READ_TOGETHER, len(source)))
        for i, example in zip(indices, source.__getitems__(indices), strict=True):
            images[i] = convert(example["image"])
            labels[i] = example.get("label", 0)  # CelebA has none
    return Split(images, labels)


def _celeba_face(image):
    """The central 140 x 140 pixels of 218 x 178, scaled to 64 x 64 with antialiasing.

    The crop is ours: none is published with arXiv 2306.06323.
    """
    face = Image.fromarray(image).crop((19, 39, 159, 179))
    return np.asarray(face.resize((64, 64), Image.Resampling.BILINEAR))


LOADERS = {
    "digits": _digits,
    "mnist": _tfds("mnist"),
    "cifar10": _tfds("cifar10"),
    "svhn": _tfds("svhn_cropped"),
    "celeba64": _tfds("celeb_a", _celeba_face),
}
