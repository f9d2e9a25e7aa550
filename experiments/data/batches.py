"""Batches of images as a function of (seed, step)."""

import os
import sys

import grain
import numpy as np
from absl import flags

from experiments.data import sources
from experiments.data.augment import AUGMENTATIONS, affine
from experiments.data.pixels import draw_binary
from experiments.errors import ConfigError
from experiments.options import Experiment

_THREADS = min(16, os.cpu_count() or 1)  # that decode batches ahead


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
    experiment: Experiment,
    images,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """The `Batches` that a configuration asks for."""
    data = experiment.data
    return Batches(
        images,
        experiment.learning.batch_size,
        seed,
        data.binarize,
        data.augment,
        data.num_workers,
        process_index,
        process_count,
    )
