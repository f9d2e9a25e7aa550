"""log p(x) of images by a model: three estimators, and checks of their errors.

    log p(x~),  x~ = (v + u) / 256,  u ~ U[0, 1) per pixel of the 8-bit values v
    bits per dimension = 8 - log p(x~) / (D log 2)

x~ is dequantised: the mean of log p(x~) bounds the log-probability of the 8-bit images
from below, up to D log 256 (arXiv 1511.01844), so that what it says compares between
models whatever their likelihood, and no density can win by a spike on the grid of
values. A likelihood of discrete images needs none of this: there log p is that of the
values themselves, and bits per dimension are -log p / (D log 2).

Three estimators of log p(x), all with log Z by annealed importance sampling
(`jebm.partition`), 0 for a Gaussian prior:

    importance   log mean p(x|z) p_beta(z) exp(-E(z)) / q(z|x) - log Z over samples of
                 the encoder; in expectation below log p(x) but for the error of log Z
    annealed     from the prior to the posterior by `num_temperatures` steps, for models
                 whose encoder does not draw alone
    bridged      the same from the encoder's q to the posterior: a shorter way

Their errors are those of the weights at hand. Two checks tell where these are not to be
trusted: log Z also backwards from samples of the run's own prior chain
(`partition.check_log_z`), which disagrees where annealing has missed a mode that the
chain finds, or the chain stays where the prior has next to no mass; and, of importance
samples, the share of images whose weights are too heavy-tailed (`importance.pareto_k`).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import jebm
from experiments.data.pixels import to_unit
from jebm import importance, partition, scores
from jebm.chains import example_keys, prior_chain, run_chains

_NUM_DRAWS = 500  # that log Z is annealed back from


def dequantise(key: jax.Array, images: np.ndarray) -> jax.Array:
    """Returns x~ of images uint8 [N, H, W, C], float32 in [0, 1].

    Example:
      >>> x = dequantise(jax.random.key(0), np.full((2, 1, 1, 1), 255, np.uint8))
      >>> bool(jnp.all((x >= 255 / 256) & (x <= 1)))
      True
    """
    noise = jax.random.uniform(key, images.shape, jnp.float32)
    return (jnp.asarray(images, jnp.float32) + noise) / 256


def bits_per_dim(nats: float, dimensions: int, discrete: bool = False) -> float:
    """Returns bits per dimension of a log-density of dequantised images on [0, 1].

    Where `discrete`, of the log-probability of images.

    Example:
      >>> bits_per_dim(0.0, 784)  # the uniform density
      8.0
    """
    return float((0 if discrete else 8) - nats / (dimensions * np.log(2)))


def observed(key: jax.Array, model, images: np.ndarray) -> np.ndarray:
    """Returns what the model has a density of: images dequantised, or discrete ones.

    The noise is that of the key, the same for every model.
    """
    return np.asarray(
        to_unit(images) if is_discrete(model) else dequantise(key, images)
    )


def is_discrete(model) -> bool:
    """Says whether the likelihood is that of discrete images."""
    return getattr(model.likelihood, "discrete", False)


def tilted_log_z(key, key_draws, model, params):
    """Estimates log Z of the tilted prior; returns this, and numbers to judge it by.

    log_z_nats with log_z_error and log_z_effective_samples; the same of
    "log_z_reverse", from samples of the prior chain; log_z_gap_nats, reverse minus
    forward; log_z_unseen_share, of samples that forward could not have reached; and
    log_z_agrees, see `partition.check_log_z`.
    """
    if jebm.priors.draws_itself(model):
        latents = jebm.sample(key_draws, model, params, _NUM_DRAWS).latents
    else:
        keys = example_keys(key_draws, jnp.arange(_NUM_DRAWS))
        latents = _of_prior_chain(keys, model, params)
    check = jax.device_get(partition.check_log_z(key, model, params, latents))
    numbers = {}
    for name, end in (("log_z", check.forward), ("log_z_reverse", check.reverse)):
        numbers[f"{name}_nats"] = end.value.item()
        numbers[f"{name}_error"] = end.standard_error.item()
        numbers[f"{name}_effective_samples"] = end.effective_samples.item()
    return check.forward, numbers | {
        "log_z_gap_nats": check.gap.item(),
        "log_z_unseen_share": check.unseen_share.item(),
        "log_z_agrees": check.agrees.item(),
    }


@jax.jit
def _of_prior_chain(keys, model, params):
    return run_chains(keys, model, params, prior_chain(model))[0]


def estimator_of(
    name: str, model, params, x: np.ndarray, num_samples: int, num_temperatures: int
) -> Callable:
    """Makes a function of a key and indices that estimates log p(x[indices]) + log Z.

    It returns an `importance.Estimate` of arrays [B], and the Pareto k of the weights
    [B], None where there are none, or not enough of them.
    """
    if name == "importance":
        return _importance(model, params, x, num_samples)
    start = {"annealed": "prior", "bridged": "encoder"}[name]
    return _annealed(start, model, params, x, num_samples, num_temperatures)


def _importance(model, params, x, num):
    def draw(key, indices):
        weights = scores.importance_log_weights(key, model, params, x[indices], num)
        tailed = num >= importance.FEWEST_WEIGHTS
        k = importance.pareto_k(weights) if tailed else None
        return importance.estimate(weights), k

    return draw


def _annealed(start, model, params, x, num, num_temperatures):
    # One schedule for all batches: tuned once, compiled once.
    schedule = partition.tune(
        jax.random.key(0), model, params, x=jnp.asarray(x), start=start,
        num_temperatures=num_temperatures,
    )  # fmt: skip
    draw = functools.partial(
        partition.log_likelihood,
        model=model,
        params=params,
        log_z=0.0,
        start=start,
        num_particles=num,
        schedule=schedule,
    )
    return lambda key, indices: (draw(key, x=jnp.asarray(x[indices])), None)
