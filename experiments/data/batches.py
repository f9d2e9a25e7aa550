"""Batches of images as a function of (seed, step), and Grain's iterators over them."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

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
    `batches.dataset(first)` has the same batches, for those who take them in order.

    Args:
      images: uint8 [N, H, W, C], an array or `sources.Streamed`.
      batch_size: over all processes.
      seed: of the order and of what is drawn.
      binarize: draws each pixel black or white, anew at every step.
      augment: "flip" mirrors every image with probability 1/2; "crop" cuts streamed
        images at a place drawn anew, not in the middle; "affine" turns, stretches,
        slants and moves every image a little, see `affine`.
      num_workers: processes that decode streamed images of `dataset`; 0: threads of
        this one.
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
        self._order = order.repeat().batch(batch_size)

    def __call__(self, step: int) -> np.ndarray:
        """Returns the images of the batch of `step`, uint8 [B, H, W, C]."""
        return self._changed(self._read(step))

    def dataset(self, first: int, last: int | None = None) -> grain.IterDataset:
        """Returns the batches of the steps from `first` on, as a data set of Grain.

        Streamed images are decoded ahead, in threads or in `num_workers` processes.

        Args:
          first: the step of the first batch.
          last: the step before which it ends; None for never.

        Example:
          >>> batches = Batches(np.arange(12), batch_size=4, seed=0)
          >>> batch = next(iter(batches.dataset(first=5)))
          >>> np.array_equal(batch, batches(5))
          True
        """
        steps = grain.MapDataset.range(first, sys.maxsize if last is None else last)
        dataset = steps.map(self._read).to_iter_dataset(self._read_options())
        if self._is_streamed and self._num_workers:
            if not flags.FLAGS.is_parsed():  # Grain's workers look into them
                flags.FLAGS.mark_as_parsed()
            workers = grain.MultiprocessingOptions(self._num_workers)
            dataset = dataset.mp_prefetch(workers, _ignore_signals)
        return dataset.map(self._changed)

    @property
    def _is_streamed(self):
        return isinstance(self._images, sources.Streamed)

    def _read_options(self):
        if not self._is_streamed:
            return grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        threads = 1 if self._num_workers else _THREADS
        return grain.ReadOptions(threads, prefetch_buffer_size=2 * threads)

    def _read(self, step):
        """Returns the step with its images, as they are before anything is drawn."""
        chosen = self._order[step][self._first : self._first + self._size]
        if not self._is_streamed:
            return step, self._images[chosen]
        places = np.full(self._size, 0.5)
        if "crop" in self._augment:
            places = self._draw(step, "crop")
        return step, np.stack(list(map(self._images.read, chosen, places)))

    def _changed(self, step_and_images):
        """Returns the images with what is drawn of them at the step."""
        step, images = step_and_images
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

    def _draw(self, step, what, *shape):
        """Draws numbers in [0, 1) for each image, by (seed, step, index in batch)."""
        role = 1 + AUGMENTATIONS.index(what)
        rng = np.random.default_rng((self._seed, step, role))
        drawn = rng.random((self._batch_size, *shape))
        return drawn[self._first : self._first + self._size]


def _ignore_signals(worker: int, num_workers: int) -> None:
    """Leaves to the parent process when a worker ends."""
    del worker, num_workers
    # Terminals and schedulers signal all processes of a run, and the parent still needs
    # batches to come to where it saves.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def prefetched(
    dataset: grain.IterDataset, function: Callable[[Any], Any] | None = None
) -> grain.DatasetIterator:
    """Returns an iterator that has the next two values ready while the caller works.

    Args:
      dataset: of the values, in order, like `Batches.dataset`.
      function: is mapped over them, in the same thread; None for nothing.

    Returns:
      an iterator of Grain; its `close()` ends the threads and processes. An error that
      is raised in one of them comes with the value that has it.

    Example:
      >>> numbers = grain.MapDataset.range(3, 6).to_iter_dataset()
      >>> list(prefetched(numbers, lambda number: number**2))
      [9, 16, 25]
    """
    if function is not None:
        dataset = dataset.map(function)
    # One in the buffer, and one that the thread holds until there is room for it.
    ahead = grain.experimental.ThreadPrefetchIterDataset(
        dataset, prefetch_buffer_size=1
    )
    return iter(ahead)


def training_batches(
    experiment: Experiment,
    images: np.ndarray | sources.Streamed,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Batches:
    """Returns the `Batches` that an experiment asks for."""
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
