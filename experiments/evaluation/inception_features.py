"""Inception's features of images by a named protocol, and what is kept of a set.

    paper   what the code released with arXiv 2306.06323 does, as far as it is known:
            the decoder's means as floats, resized between the nearest pixels as
            pytorch-fid does; the score in one split, of the first 1,000 classes
    clean   images as 8-bit files hold them, resized with antialiasing, as clean-fid
            (arXiv 2104.11222) does; the score in ten splits, of all 1,008 classes and
            without the last layer's bias, as in the first code of that score

docs/metrics.md tells more of both.
"""

import itertools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.errors import ConfigError
from experiments.evaluation import activations
from experiments.runtime import parallel
from jebm import metrics
from jebm.metrics import inception
from jebm.metrics.inception_score import (
    InceptionScore,
    ScoreSums,
    mean_score,
    split_bounds,
)

SUBSET = 10_000  # images whose features are kept


class Protocol(NamedTuple):
    """How images become activations, and logits a score."""

    name: str
    quantised: bool
    resize: str
    num_classes: int  # of 1,008: the first ones, which the score is of
    bias: bool
    num_splits: int


PAPER = Protocol("paper", False, "bilinear", 1000, True, 1)
CLEAN = Protocol("clean", True, "bicubic", 1008, False, 10)
PROTOCOLS = {protocol.name: protocol for protocol in (PAPER, CLEAN)}


class Extractor(NamedTuple):
    """A network, its weights on all devices, and the protocol that it is used by."""

    protocol: Protocol
    network: inception.InceptionV3
    variables: Any
    sha256: str
    step: Callable  # of all devices; compiled once for all sets of images

    @classmethod
    def load(cls, protocol: Protocol, file: str | None) -> "Extractor":
        """Reads the weights of `file`, or of the cache, for a protocol.

        Raises:
          ConfigError: if there are none, saying where to get them.
        """
        try:
            network, variables, sha256 = inception.load(file)
        except (FileNotFoundError, ValueError) as error:
            raise ConfigError(str(error)) from error
        devices = jax.local_devices()
        variables = parallel.replicate(variables, devices)
        quantised, resize = protocol.quantised, protocol.resize
        step = activations.measure(network, quantised, resize, devices)
        return cls(protocol, network, variables, sha256, step)

    @property
    def name(self) -> str:
        """Returns the name of the protocol."""
        return self.protocol.name

    @property
    def num_classes(self) -> int:
        """Counts the classes that the Inception score is of."""
        return max(1, self.protocol.num_classes // self.network.reduction)

    def stage(self, images: jax.Array) -> inception.Activations:
        """Computes the activations of images [devices, B, H, W, C] in [0, 1]."""
        return self.step(None, self.variables, images)

    def score_logits(self, logits: np.ndarray) -> np.ndarray:
        """Returns those of logits [N, C] that the Inception score uses."""
        if not self.protocol.bias:
            bias = parallel.unreplicate(self.variables["params"]["fc"]["bias"])
            logits = logits - bias
        return logits[:, : self.num_classes]

    def described(self) -> str:
        """Describes the features."""
        if self.sha256 == inception.PUBLISHED_SHA256:
            return "pool of pt_inception-2015-12-05"
        return f"pool of other Inception weights, sha256 {self.sha256[:8]}"


class Summary(NamedTuple):
    """What is kept of a set of images."""

    mean: np.ndarray  # [D]
    covariance: np.ndarray  # [D, D]
    features: np.ndarray  # [n <= SUBSET, D], of the first images
    score: InceptionScore
    rates: dict[str, float]


def summarise(
    files: list[pathlib.Path], num: int, extractor: Extractor
) -> Summary | None:
    """Reads the batches of `activations.stream` once; None if one is not finite."""
    moments: metrics.Moments | None = None
    kept: list[np.ndarray] = []
    batches, seen = [], 0
    bounds = split_bounds(num, min(extractor.protocol.num_splits, num))
    splits: list[Any] = [None] * (len(bounds) - 1)
    for batch in activations.read(files, num):
        if not (np.isfinite(batch.pool).all() and np.isfinite(batch.logits).all()):
            return None
        more = metrics.moments(batch.pool)
        moments = more if moments is None else metrics.merge_moments(moments, more)
        if seen < SUBSET:
            kept.append(batch.pool[: SUBSET - seen].copy())  # not a view of all
        logits = extractor.score_logits(batch.logits)
        for i, (start, stop) in enumerate(itertools.pairwise(bounds)):
            part = logits[max(start - seen, 0) : max(stop - seen, 0)]
            if len(part):
                sums = ScoreSums.of(part)
                splits[i] = sums if splits[i] is None else splits[i].plus(sums)
        seen += len(batch.pool)
        nothing = np.empty(0)  # of a batch only its times are used again
        batches.append(batch._replace(pool=nothing, logits=nothing))
    assert moments is not None  # there is a batch
    return Summary(
        *metrics.statistics_of(moments),
        np.concatenate(kept),
        mean_score([sums.score() for sums in splits]),
        activations.rates(batches),
    )
