"""Measures a prior that has learned.

    frechet            distance to held-out images, in features of the data's classifier
    frechet_effort     the same with draws four times as expensive
    nats               log p(x) of held-out images, if there is a density: by annealing
                       from the encoder for the Gaussian prior, and by reweighting the
                       same particles for any other
    auprc              for a class that a second, shorter learning has not seen
    seconds_per_1000   to draw 1,000, compiled

The distances are not FIDs.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.metrics import average_precision_score

from experiments.data.pixels import to_unit
from experiments.evaluation.log_likelihood import observed
from experiments.runtime.batching import map_batches
from jebm import partition, priors
from jebm.importance import estimate
from jebm.metrics import feature_statistics, frechet_distance

EFFORT = 4
_LOTS = 8  # of images of training


@dataclasses.dataclass(frozen=True)
class Weighed:
    """Particles of the posterior of held-out images under the Gaussian prior.

    Attributes:
      eps: flat, float32 [N, K, size].
      log_w: their log-weights, whose mean weight is p(x) without a tilt, [N, K].
    """

    eps: np.ndarray
    log_w: np.ndarray


def weigh(
    key: jax.Array,
    frozen: priors.Frozen,
    images: np.ndarray,
    num: int,
    num_temperatures: int,
) -> Weighed:
    """Anneals `num` particles of each of the images uint8 [N, H, W, C]."""
    key_noise, key_tune, key_run = jax.random.split(key, 3)
    x = observed(key_noise, frozen.model, images)
    model, params = frozen.model, frozen.params
    schedule = partition.tune(
        key_tune, model, params, x=jnp.asarray(x[:8]), start="encoder",
        num_temperatures=num_temperatures,
    )  # fmt: skip

    def draw(key, index):
        keys = jax.random.split(key, num * len(index))
        repeated = jnp.repeat(jnp.asarray(x[index]), num, axis=0)
        eps, log_w = partition.particles(
            keys, model, params, schedule, x=repeated, start="encoder"
        )
        shape = len(index), num
        return frozen.flat(eps).reshape(*shape, -1), log_w.reshape(shape)

    return Weighed(*map_batches(key_run, draw, np.arange(len(x)), 50))


def tilts(law: priors.Law, eps: np.ndarray, batch: int) -> np.ndarray:
    """Computes g of flat noise [N, K, size], [N, K] in nats, up to log Z."""
    num, samples, size = eps.shape
    flat = eps.reshape(-1, size)
    tilt = jax.jit(lambda law, vectors: law.log_tilt(law.frozen.layers(vectors)))
    found = map_batches(
        None, lambda _, i: tilt(law, flat[i]), np.arange(len(flat)), batch
    )
    return found.reshape(num, samples)


def nats(key: jax.Array, law: priors.Law, held: Weighed, batch: int) -> dict[str, Any]:
    """Estimates log p(x), the mean over images, by weighing each image's particles."""
    log_z = jax.device_get(jax.jit(lambda key, law: law.log_z(key))(key, law))
    each = estimate(jnp.asarray(held.log_w + tilts(law, held.eps, batch)))
    variance = np.mean(np.asarray(each.standard_error) ** 2) / len(held.log_w)
    return {
        "nats": float(np.mean(each.value) - log_z.value),
        "nats_error": float(np.sqrt(variance + log_z.standard_error**2)),
        "log_z": float(log_z.value),
        "log_z_error": float(log_z.standard_error),
    }


def auprc(law: priors.Law, held: Weighed, anomalous: np.ndarray, batch: int) -> float:
    """Measures how well minus log p(eps), of a particle each, finds the anomalous.

    The generator may have seen them: what it makes of an image is left out.
    """
    log_normal = -0.5 * (held.eps[:, :1] ** 2).sum(axis=-1)  # up to a constant
    score = -(log_normal + tilts(law, held.eps[:, :1], batch)).mean(axis=1)
    return float(average_precision_score(anomalous, score))


def draw(key: jax.Array, law: priors.Law, num: int, batch: int, effort: int = 1):
    """Draws images [num, H, W, C]; returns these and the seconds of 1,000."""

    @jax.jit
    def one(key, law):
        return law.frozen.decode(law.sample(key, batch, effort))

    jax.block_until_ready(one(key, law))  # compiled, and not counted
    begun = time.monotonic()
    images = map_batches(key, lambda key, _: one(key, law), np.arange(num), batch)
    return images, 1000 * (time.monotonic() - begun) / (-(-num // batch) * batch)


def distances(
    key: jax.Array,
    law: priors.Law,
    real: np.ndarray,
    features: Callable[[np.ndarray], np.ndarray],
    num: int,
    batch: int,
) -> tuple[dict[str, Any], np.ndarray]:
    """Measures the distances and the time of a draw; returns some images too."""
    reference = feature_statistics(features(to_unit(real)))

    def distance(images):
        if not np.isfinite(images).all():
            return np.nan
        return frechet_distance(*feature_statistics(features(images)), *reference)

    images, seconds = draw(key, law, num, batch)
    expensive, slow = draw(key, law, num, batch, EFFORT)
    return {
        "frechet": float(distance(images)),
        "frechet_effort": float(distance(expensive)),
        "seconds_per_1000": seconds,
        "seconds_per_1000_effort": slow,
    }, images[:100]


class Floor(NamedTuple):
    """Distances of posterior samples from held-out images.

    Attributes:
      paired: of samples of the first held-out images themselves. Where these are many
        of the images they are held against, nothing else is as near.
      perfect: of samples of as many images of training, the mean over disjoint lots:
        a prior that is the aggregate posterior itself has this distance.
      spread: the standard deviation of `perfect` over the lots, for one lot.
    """

    paired: float
    perfect: float
    spread: float


def floor(
    key: jax.Array,
    frozen: priors.Frozen,
    real: np.ndarray,
    eps: jax.Array,
    features: Callable[[np.ndarray], np.ndarray],
    num: int,
) -> Floor:
    """Measures the floor of `num` samples.

    Args:
      key: for samples of the held-out images.
      frozen: the generator.
      real: held-out images, uint8 [M, H, W, C].
      eps: flat noise behind images of training, [N, size].
      features: of images.
      num: of samples.
    """
    x = to_unit(real)
    reference = feature_statistics(features(x))

    @jax.jit
    def reconstructed(key, x):
        return frozen.decode(frozen.draws(key, x).eps)

    @jax.jit
    def decoded(vectors):
        return frozen.decode(frozen.layers(vectors))

    def distance(key, make, inputs):
        images = map_batches(key, make, inputs, 100)
        return float(
            frechet_distance(*feature_statistics(features(images)), *reference)
        )

    paired = distance(key, lambda k, i: reconstructed(k, x[i]), np.arange(len(x))[:num])
    order = np.random.default_rng(0).permutation(len(eps))
    lots = [order[i * num : (i + 1) * num] for i in range(_LOTS)]
    full = [lot for i, lot in enumerate(lots) if i == 0 or len(lot) == num]
    fresh = [distance(None, lambda _, i: decoded(eps[i]), lot) for lot in full]
    spread = np.std(fresh, ddof=1) if len(fresh) > 1 else np.nan
    return Floor(paired, float(np.mean(fresh)), float(spread))


def encode(
    key: jax.Array, frozen: priors.Frozen, images: np.ndarray, passes: int
) -> np.ndarray:
    """Draws the flat noise of images uint8 [N, H, W, C], float32 [passes, N, size]."""

    @jax.jit
    def noise(key, images):
        return frozen.flat(frozen.draws(key, to_unit(images)).eps)

    num = np.arange(len(images))
    return np.stack(
        [
            map_batches(
                jax.random.fold_in(key, i), lambda k, n: noise(k, images[n]), num, 200
            )
            for i in range(passes)
        ]
    ).astype(np.float32)
