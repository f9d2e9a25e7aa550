"""Statistics of real images that samples are held against, kept in a cache.

A file of them is an .npz of `mu` [D] and `sigma` [D, D], as the authors of the FID
(TTUR) publish them, and may hold `features` [n, D] of some images, in random order, and
`about`, JSON. Ours hold all four; without features there is no KID, precision or
recall.
"""

import hashlib
import json
import pathlib
import shutil
import zipfile
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.data import datasets, sources
from experiments.data.pixels import digest, draw_binary, to_unit
from experiments.errors import ConfigError
from experiments.evaluation import activations
from experiments.evaluation.inception_features import Extractor, summarise
from experiments.options import Data
from experiments.runtime import parallel
from jebm.files import cache_directory, written_whole
from jebm.metrics import checks, inception


class Reference(NamedTuple):
    """What a file holds."""

    mean: np.ndarray  # [D]
    covariance: np.ndarray  # [D, D]
    features: np.ndarray | None  # [n, D]
    about: dict[str, Any]  # facts for eval.json

    @property
    def num_features(self) -> int:
        """Counts the images whose features are kept, n; 0 without features."""
        return 0 if self.features is None else len(self.features)


def obtain(data: Data, split: str, batch_size: int, extractor: Extractor) -> Reference:
    """Reads that of a split of the data set from the cache, where it is made if absent.

    Raises:
      ConfigError: if the file is damaged, or there is no such split.
    """
    images = images_of(data, split)
    file = cached(data, split, images, extractor)
    if not file.is_file():
        print(f"No statistics in {file} yet.")
        make(file, images, batch_size, extractor)
        print(f"wrote {file}")
    return read(file, extractor)


def images_of(data: Data, split: str) -> np.ndarray | sources.Streamed:
    """Returns the images of a split; those drawn black or white drawn once."""
    splits = datasets.load(data)
    if split not in splits:
        raise ConfigError(
            f"eval.fid.reference_split is {split!r}; known: {sorted(splits)}"
        )
    images = splits[split].images
    if data.binarize and split == "train":  # "test" is drawn already
        rng = np.random.default_rng(0)
        images = draw_binary(rng, images)
    return images


def cached(data: Data, split: str, images, extractor: Extractor) -> pathlib.Path:
    """Names the file: data set, split, resolution, protocol; a digest of the pixels.

    Whatever else decides which images they are, and however a folder has changed, is in
    the digest. Streamed images are all decoded for it.
    """
    _, height, width, _ = images.shape
    parts = [data.name.replace("/", "-"), split, f"{height}x{width}", extractor.name]
    if data.is_fake:
        parts[0] += f"-{data.fake_like.replace('/', '-')}"
    parts.append(digest(images)[:16])
    if extractor.sha256 != inception.PUBLISHED_SHA256:
        parts.append(f"inception{extractor.sha256[:8]}")
    return cache_directory() / "statistics" / f"{'_'.join(parts)}.npz"


def make(
    file: pathlib.Path,
    images: np.ndarray | sources.Streamed,
    batch_size: int,
    extractor: Extractor,
) -> None:
    """Takes the statistics of images uint8 [N, H, W, C], N >= 2; resumes after a kill.

    Raises:
      ConfigError: for fewer images.
    """
    if len(images) < 2:
        raise ConfigError(f"statistics need 2 images, got {len(images)}")
    devices = jax.local_devices()
    # In this order the first ones are a random choice.
    order = np.random.default_rng(0).permutation(len(images))

    def first(indices):
        chosen = images[order[indices % len(order)]]
        scaled = np.asarray(to_unit(chosen))
        return parallel.shard(scaled, devices)

    identity = {"images": digest(images), "batch_size": batch_size}
    unfinished = file.with_suffix(".unfinished") / activations.digest(identity)
    files = activations.stream(
        unfinished, len(images), batch_size, [extractor.stage], first, file.stem
    )
    summary = summarise(files, len(images), extractor)
    if summary is None:
        raise ConfigError(f"activations of the images for {file} are not finite")
    about = {
        "protocol": extractor.name,
        "inception": extractor.sha256,
        "num_images": len(images),
        "inception_score": summary.score.mean,
        "images_per_second": summary.rates["images_per_second_metric"],
    }
    _write(file, summary, about)
    shutil.rmtree(file.with_suffix(".unfinished"))


def _write(file, summary, about):
    """Writes the file in one piece."""
    with written_whole(file) as partial, partial.open("wb") as stream:
        np.savez(
            stream,
            mu=summary.mean,
            sigma=summary.covariance,
            features=summary.features,
            about=np.array(json.dumps(about)),
        )


def read(file: pathlib.Path, extractor: Extractor) -> Reference:
    """Reads a file of statistics; nothing in it can run.

    Raises:
      ConfigError: if it is damaged, not finite, or of another protocol or other
        features.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            held = dict(arrays)
        mean, covariance = held["mu"], held["sigma"]
        about = json.loads(str(held["about"])) if "about" in held else {}
    except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"{file} is damaged or not an .npz of mu and sigma: {error}"
        ) from None
    _check(file, held, about, extractor)
    facts = {
        "reference": file.name,
        "reference_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    if "num_images" in about:
        facts["num_reference"] = about["num_images"]
        facts["reference_inception_score"] = about["inception_score"]
    return Reference(mean, covariance, held.get("features"), facts)


def _check(file, held, about, extractor):
    """Refuses statistics of other features, of another protocol, and none at all."""
    dimensions = 2048 // extractor.network.reduction
    shapes = held["mu"].shape, held["sigma"].shape
    if shapes != ((dimensions,), (dimensions, dimensions)):
        raise ConfigError(
            f"{file} holds statistics of shapes {shapes[0]} and {shapes[1]}, and the "
            f"features have {dimensions} dimensions"
        )
    try:
        for name in ("mu", "sigma", "features"):
            checks.finite(f"{name} of {file}", held.get(name, 0.0))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    for name, ours in (("protocol", extractor.name), ("inception", extractor.sha256)):
        if about.get(name, ours) != ours:
            raise ConfigError(
                f"{file} is of the {name} {about[name]!r}, and {ours!r} was asked for"
            )
