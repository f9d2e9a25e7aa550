"""Images, and batches of them as a function of (seed, step)."""

import functools
import os
import sys

import grain
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import fake, sources
from experiments.command_line import ConfigError
from experiments.loaders import CROPPED, LOADERS, Options, Split
from jebm.names import unknown_name_message

AUGMENTATIONS = ("flip", "crop", "affine")
_THREADS = min(16, os.cpu_count() or 1)  # that decode batches ahead


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
    for kind in augment:
        if kind not in AUGMENTATIONS:
            raise ConfigError(unknown_name_message("data.augment", kind, AUGMENTATIONS))
    if "affine" in augment:
        _host()
    cropped = "crop" in augment
    if cropped and (fake_like if name == "fake" else name) not in CROPPED:
        raise ConfigError(
            f"data.augment 'crop' is of images of many sizes, {CROPPED}; those of "
            f"{name!r} are all of one"
        )
    options = Options(data_dir, image_shape, fake_like, on_corrupt, cropped)
    splits = dict(read(name, options))
    if name == "fake":
        print(f"{fake.LABEL}: the images are made up, in the shape of {fake_like!r}.")
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
        images = draw_binary(rng, np.asarray(test.images))
        splits["test"] = test._replace(images=images)
    return splits


@functools.lru_cache(maxsize=1)  # training and its figures read the same images
def read(name: str, options: Options) -> dict[str, Split]:
    """All of the data set `name`, kept in memory until another is asked for."""
    return LOADERS[name](options)


def described(data) -> str:
    """The data set's name for readers; of fake data, what is imitated as well."""
    if data["name"] != "fake":
        return data["name"]
    return f"{fake.LABEL} in the shape of {data['fake_like']}"


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
    images = split.images
    if isinstance(images, sources.Streamed):
        return Split(images.subset(index), split.labels[index])
    return Split(images[index], split.labels[index])


BENT, MOVED = 0.14, 0.04  # most of "affine": per entry of the matrix, per side


def affine(images: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Turns, stretches, slants and moves images a little, by maps of their coordinates.

    A map is A (c - middle) + middle + t, with |A - I| <= `BENT` in every entry and |t|
    <= `MOVED` of the side; pixels are bilinear, and beyond the border as at the border.
    It is computed on the host, by JAX's CPU backend.

    Args:
      images: uint8 [B, H, W, C].
      drawn: the maps, in [0, 1), [B, 2, 3]: A, and in the last column t; 1/2 is I, 0.

    Returns:
      uint8 [B, H, W, C].

    Example:
      >>> images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
      >>> np.array_equal(affine(images, np.full((3, 2, 3), 0.5)), images)
      True
    """
    off = 2 * drawn - 1
    side = np.array(images.shape[1:3])
    middle = (side - 1) / 2
    matrices = np.eye(2) + BENT * off[..., :2]
    offsets = middle - matrices @ middle + MOVED * side * off[..., 2]
    with jax.default_device(_host()):
        return np.asarray(_affine(images, np.float32(matrices), np.float32(offsets)))


def _host():
    """The CPU, as a device of JAX's."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise ConfigError(
            "data.augment 'affine' needs JAX's CPU backend, which is not there; "
            f"does JAX_PLATFORMS leave out cpu? {error}"
        ) from None


@jax.jit
def _affine(images, matrices, offsets):
    row, column = jnp.indices(images.shape[1:3], jnp.float32)

    def one(arguments):
        image, matrix, offset = arguments
        places = [
            a[0] * row + a[1] * column + b for a, b in zip(matrix, offset, strict=True)
        ]

        def moved(channel):
            return jax.scipy.ndimage.map_coordinates(
                channel, places, order=1, mode="nearest"
            )

        return jnp.round(jax.vmap(moved, 2, 2)(image.astype(jnp.float32)))

    # One after the other: an image is then the same in a batch of any size.
    return jax.lax.map(one, (images, matrices, offsets)).astype(jnp.uint8)


def to_unit(images: jax.Array) -> jax.Array:
    """uint8 pixels to float32 in [0, 1], the one place where images are scaled."""
    return images.astype(jnp.float32) / 255


class Batches:
    """Random-access batches of shuffled images, reshuffled every epoch.

    `batches(step)` depends on (seed, step) alone: nothing to save, nothing to restore.
    Streamed images are decoded ahead, for the steps that follow the last one asked for.

    Args:
      images: uint8 [N, H, W, C], an array or `sources.Streamed`.
      batch_size: over all processes.
      seed: of the order and of what is drawn.
      binarize: draws each pixel black or white, anew at every step.
      augment: "flip" mirrors every image with probability 1/2; "crop" cuts streamed
        images at a place drawn anew, not in the middle; "affine" turns, stretches,
        slants and moves every image a little, see `affine`.
      num_workers: processes that decode streamed images; 0: threads of this one.
      process_index: which of process_count equal shares of every batch this one reads;
        together they are the batch that one process alone would read.
      process_count: see above.

    Raises:
      ConfigError: for a batch that is larger than all images, or cannot be shared.
    """

    def __init__(
        self,
        images: np.ndarray | sources.Streamed,
        batch_size: int,
        seed: int,
        binarize: bool = False,
        augment: tuple[str, ...] = (),
        num_workers: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ):
        if batch_size > len(images):
            raise ConfigError(
                f"learning.batch_size of {batch_size} is more than the {len(images)} "
                "images of the training split"
            )
        if batch_size % process_count:
            raise ConfigError(
                f"learning.batch_size of {batch_size} cannot be shared by "
                f"{process_count} processes"
            )
        self._seed, self._binarize, self._augment = seed, binarize, augment
        self._images, self._num_workers = images, num_workers
        self._batch_size, self._size = batch_size, batch_size // process_count
        self._first = process_index * self._size
        order = grain.MapDataset.range(len(images)).seed(seed).shuffle()
        self._order = order.repeat()
        self._stream, self._next = None, None

    def __call__(self, step: int) -> np.ndarray:
        """Returns the images of the batch of `step`, uint8 [B, H, W, C]."""
        if isinstance(self._images, sources.Streamed):
            images = self._streamed(step)
        else:
            images = self._images[self._chosen(step)]
        if "flip" in self._augment:
            flipped = self._draw(step, "flip") < 0.5
            images = np.where(flipped[:, None, None, None], images[:, :, ::-1], images)
        if "affine" in self._augment:
            images = affine(images, self._draw(step, "affine", 2, 3))
        if not self._binarize:
            return images
        rng = np.random.default_rng((self._seed, step))
        rng.bit_generator.advance(self._first * images[0].size)  # others' pixels
        return draw_binary(rng, images)

    def _chosen(self, step):
        start = step * self._batch_size + self._first
        return [self._order[start + i] for i in range(self._size)]

    def _draw(self, step, what, *shape):
        """Numbers in [0, 1) for each image, by (seed, step, index in the batch)."""
        role = 1 + AUGMENTATIONS.index(what)
        rng = np.random.default_rng((self._seed, step, role))
        drawn = rng.random((self._batch_size, *shape))
        return drawn[self._first : self._first + self._size]

    def _streamed(self, step):
        if step != self._next:
            dataset = grain.MapDataset.range(step, sys.maxsize).map(self._decode)
            threads = 1 if self._num_workers else _THREADS
            options = grain.ReadOptions(threads, prefetch_buffer_size=2 * threads)
            dataset = dataset.to_iter_dataset(options)
            if self._num_workers:
                if not flags.FLAGS.is_parsed():  # Grain's workers look into them
                    flags.FLAGS.mark_as_parsed()
                workers = grain.MultiprocessingOptions(self._num_workers)
                dataset = dataset.mp_prefetch(workers)
            self._stream = iter(dataset)
        self._next = step + 1
        return next(self._stream)

    def _decode(self, step):
        places = np.full(self._size, 0.5)
        if "crop" in self._augment:
            places = self._draw(step, "crop")
        read = self._images.read
        return np.stack(list(map(read, self._chosen(step), places)))

    def __getstate__(self):  # for the workers
        return self.__dict__ | {"_stream": None, "_next": None}


def training_batches(
    config, images, seed: int, process_index: int = 0, process_count: int = 1
) -> Batches:
    """The `Batches` that a configuration asks for."""
    data = config.data
    return Batches(
        images,
        config.learning.batch_size,
        seed,
        data.binarize,
        data.augment,
        data.num_workers,
        process_index,
        process_count,
    )
