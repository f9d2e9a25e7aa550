"""Activations of many images, batch by batch through all devices, safe from kills.

Each batch becomes a file, written in one piece: a killed evaluation goes on with the
batch that it was at, to the same bits, and memory holds one batch however many there
are. They are deleted when the numbers are written.
"""

import hashlib
import json
import pathlib
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from experiments.runtime import parallel
from jebm.files import written_whole
from jebm.metrics import inception

STAGES = ("chain", "decoder", "metric")
_TOGETHER = 50  # images of 299 x 299 on one device


class Batch(NamedTuple):
    """What the file of a batch holds."""

    pool: np.ndarray  # [B, D]
    logits: np.ndarray  # [B, C]
    size: np.ndarray  # [], images that the seconds are of
    seconds: np.ndarray  # [stages]
    compiled: np.ndarray  # [], whether some of these seconds are the compiler's


def measure(
    network: inception.InceptionV3, quantised: bool, resize: str, devices
) -> Callable[[Any, Any, jax.Array], inception.Activations]:
    """Makes a step of `parallel.pmap`, of images [devices, B, H, W, C] in [0, 1]."""

    def one(variables, image):
        image = inception.quantise(image) if quantised else image
        activations = network.apply(variables, inception.prepare(image[None], resize))
        return jax.tree.map(lambda a: a[0], activations)

    def step(key, variables, images):
        del key
        together = min(_TOGETHER, len(images))
        return jax.lax.map(lambda x: one(variables, x), images, batch_size=together)

    return parallel.pmap(step, devices, donate=False)


def stream(
    folder: pathlib.Path,
    num: int,
    batch_size: int,
    stages: list[Callable[[Any], Any]],
    first: Callable[[np.ndarray], Any],
    name: str,
) -> list[pathlib.Path]:
    """Takes `num` images through all stages, but for batches that `folder` holds.

    Args:
      folder: of this evaluation alone; made if absent.
      num: of images.
      batch_size: over all devices. The last batch is drawn whole.
      stages: functions, each of what the one before returned, the last one making
        `inception.Activations`, sharded over devices; timed apart.
      first: makes of the indices [batch_size] of a batch what the first stage takes.
      name: shown beside the progress bar.

    Returns:
      the files, in order, for `read`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files, compiled = [], True
    progress = tqdm(total=num, unit="image", desc=name, disable=None)
    with progress:
        for start in range(0, num, batch_size):
            file = folder / f"{start:08d}.npz"
            if not _is_sound(file):
                value, seconds = first(np.arange(start, start + batch_size)), []
                for stage in stages:
                    started = time.perf_counter()
                    value = jax.block_until_ready(stage(value))
                    seconds.append(time.perf_counter() - started)
                about = batch_size, seconds, compiled
                _write(file, Batch(*parallel.unshard(value), *map(np.array, about)))
                compiled = False
            files.append(file)
            progress.update(min(batch_size, num - start))
    return files


def digest(identity: dict[str, Any]) -> str:
    """Names the folder of an evaluation by all that its activations depend on."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read(files: list[pathlib.Path], num: int) -> Iterator[Batch]:
    """Yields the batches, the last one cut so that there are `num` images in all."""
    for file in files:
        batch = _load(file)
        keep = min(num, len(batch.pool))
        yield batch._replace(pool=batch.pool[:keep], logits=batch.logits[:keep])
        num -= keep


def rates(batches: list[Batch]) -> dict[str, float]:
    """Computes images a second per stage, median over batches that compiled nothing."""
    timed = [b for b in batches if not b.compiled] or batches
    seconds = np.median([b.seconds / b.size for b in timed], axis=0)
    stages = STAGES[-len(seconds) :]
    return {
        f"images_per_second_{stage}": float(1 / second)
        for stage, second in zip(stages, seconds, strict=True)
    }


def _write(file, batch):
    with written_whole(file) as partial, partial.open("wb") as stream:
        np.savez(stream, **batch._asdict())


def _load(file):
    with np.load(file, allow_pickle=False) as arrays:
        return Batch(*(arrays[name] for name in Batch._fields))


def _is_sound(file):
    try:
        _load(file)  # which checks the sums of the archive
    except (KeyError, OSError, ValueError, EOFError, zipfile.BadZipFile):
        return False
    return True
