"""Test log-likelihood: how good the density of images is, in nats and in bits.

    log p(x~),  x~ = (v + u) / 256,  u ~ U[0, 1) per pixel of the 8-bit values v
    bits per dimension = 8 - log p(x~) / (D log 2)

x~ is dequantised: the mean of log p(x~) bounds the log-probability of the 8-bit images
from below, up to D log 256 (arXiv 1511.01844), so that what it says compares between
models whatever their likelihood, and no density can win by a spike on the grid of
values. A likelihood of discrete images needs none of this: there log p is that of the
values themselves, and bits per dimension are -log p / (D log 2).

Three estimators of log p(x) (`eval.likelihood.estimator`), both with log Z by annealed
importance sampling (`jebm.partition`), 0 for a Gaussian prior:

    importance   log mean p(x|z) p_beta(z) exp(-E(z)) / q(z|x) - log Z over samples of
                 the encoder; in expectation below log p(x) but for the error of log Z
    annealed     from the prior to the posterior by `eval.likelihood.num_temperatures`
                 steps, for models whose encoder does not draw alone
    bridged      the same from the encoder's q to the posterior: a shorter way

Their errors are those of the weights at hand. Two checks tell where these are not to be
trusted: log Z also backwards from samples of the run's own prior chain
(`partition.check_log_z`), which disagrees where annealing has missed a mode that the
chain finds, or the chain stays where the prior has next to no mass; and, of importance
samples, the share of images whose weights have too heavy a tail (`partition.pareto_k`).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

import jebm
from experiments.data.pixels import to_unit
from experiments.errors import ConfigError
from experiments.runtime.batching import map_batches
from jebm import partition, scores
from jebm.chains import example_keys, prior_chain, run_chains
from jebm.names import unknown_name_message

ESTIMATORS = ("importance", "annealed", "bridged")
_NUM_DRAWS = 500  # that log Z is annealed back from
_HEAVY = 0.7  # k of `partition.pareto_k`


def check(config) -> None:
    """Refuses settings that cannot work, naming the field."""
    options = config.eval
    if options.likelihood_estimator not in ESTIMATORS:
        name = options.likelihood_estimator
        raise ConfigError(
            unknown_name_message("eval.likelihood.estimator", name, ESTIMATORS)
        )
    if config.likelihood.name == "bernoulli" and not config.data.binarize:
        raise ConfigError(
            "eval.protocol 'likelihood' with the likelihood 'bernoulli', which is no "
            "density of grey images, needs config.data.binarize=True"
        )
    posterior = config.chains.posterior
    alone = posterior.start == "encoder" and not posterior.num_steps
    if options.likelihood_estimator != "annealed" and not alone:
        raise ConfigError(
            f"eval.likelihood.estimator {options.likelihood_estimator!r} needs "
            "posterior samples of an encoder alone; this run's are of a chain: set "
            "config.eval.likelihood.estimator to 'annealed'"
        )


def dequantise(key: jax.Array, images: np.ndarray) -> jax.Array:
    """x~ of images uint8 [N, H, W, C], float32 in [0, 1].

    Example:
      >>> x = dequantise(jax.random.key(0), np.full((2, 1, 1, 1), 255, np.uint8))
      >>> bool(jnp.all((x >= 255 / 256) & (x <= 1)))
      True
    """
    noise = jax.random.uniform(key, images.shape, jnp.float32)
    return (jnp.asarray(images, jnp.float32) + noise) / 256


def bits_per_dim(nats: float, dimensions: int, discrete: bool = False) -> float:
    """Bits per dimension of a log-density of dequantised 8-bit images on [0, 1].

    Where `discrete`, of the log-probability of images.

    Example:
      >>> bits_per_dim(0.0, 784)  # the uniform density
      8.0
    """
    return float((0 if discrete else 8) - nats / (dimensions * np.log(2)))


def likelihood(key, model: jebm.Model, params, images, options) -> dict[str, float]:
    """The numbers of eval.json.

    Args:
      key: typed key, []. The noise of dequantisation is its own, the same for every
        model.
      model: the model.
      params: its parameters.
      images: uint8 [N, H, W, C], of which the first `likelihood_num_images` count.
      options: `config.eval`.

    Returns:
      log_likelihood_nats, the mean over images; log_likelihood_error, how far another
      run of the estimator may come out, the errors of images and of log Z together;
      log_likelihood_spread, the standard deviation between images; bits_per_dim;
      effective_samples, of the median image; of importance samples, where there are
      enough of them, heavy_tailed_share, of images with a Pareto k above .7. All these
      with "_untilted", of the Gaussian prior of the same generator, and what `_log_z`
      tells, where there is an energy.
    """
    images = images[: options.likelihood_num_images]
    key_noise, key_x, key_z = jax.random.split(key, 3)
    discrete = _is_discrete(model)
    x = to_unit(images) if discrete else dequantise(key_noise, images)
    x = np.asarray(x)
    exact = partition.Estimate(0.0, 0.0, np.inf)  # log Z of a Gaussian prior
    if model.energy is None:
        return _of_prior(key_x, model, params, x, exact, options)
    # Not one of the three above, in which the numbers of a key are.
    key_draws = jax.random.fold_in(key, 3)
    log_z, about = _log_z(key_z, key_draws, model, params)
    untilted = dataclasses.replace(model, energy=None), params._replace(energy={})
    gaussian = _of_prior(key_x, *untilted, x, exact, options)
    return {
        **about,
        **_of_prior(key_x, model, params, x, log_z, options),
        **{f"{name}_untilted": value for name, value in gaussian.items()},
    }


def _log_z(key, key_draws, model, params):
    """log Z of the tilted prior, and what eval.json tells of it.

    log_z_nats with log_z_error and log_z_effective_samples; the same of
    "log_z_reverse", from samples of the prior chain; log_z_gap_nats, reverse minus
    forward; log_z_unseen_share, of samples that forward could not have found; and
    log_z_agrees, see `partition.check_log_z`.
    """
    keys = example_keys(key_draws, jnp.arange(_NUM_DRAWS))
    latents = _of_prior_chain(keys, model, params)
    found = jax.device_get(partition.check_log_z(key, model, params, latents))
    told = {}
    for name, end in (("log_z", found.forward), ("log_z_reverse", found.reverse)):
        told[f"{name}_nats"] = end.value.item()
        told[f"{name}_error"] = end.standard_error.item()
        told[f"{name}_effective_samples"] = end.effective_samples.item()
    return found.forward, told | {
        "log_z_gap_nats": found.gap.item(),
        "log_z_unseen_share": found.unseen_share.item(),
        "log_z_agrees": found.agrees.item(),
    }


@jax.jit
def _of_prior_chain(keys, model, params):
    return run_chains(keys, model, params, prior_chain(model))[0]


def _is_discrete(model):
    return getattr(model.likelihood, "discrete", False)


def _of_prior(key, model, params, x, log_z, options):
    estimator = {
        "importance": _importance,
        "annealed": functools.partial(_annealed, "prior"),
        "bridged": functools.partial(_annealed, "encoder"),
    }
    draw = estimator[options.likelihood_estimator](model, params, x, options)
    batch = min(options.likelihood_batch_size, len(x))
    each, k = map_batches(key, draw, np.arange(len(x)), batch)
    value = each.value - log_z.value
    error = np.sqrt(np.mean(each.standard_error**2) / len(x) + log_z.standard_error**2)
    nats = float(value.mean())
    tails = {} if k is None else {"heavy_tailed_share": float(np.mean(~(k <= _HEAVY)))}
    return {
        "log_likelihood_nats": nats,
        "log_likelihood_error": float(error),
        "log_likelihood_spread": float(value.std(ddof=1)),
        "bits_per_dim": bits_per_dim(nats, x[0].size, _is_discrete(model)),
        "effective_samples": float(np.median(each.effective_samples)),
        **tails,
    }


def _importance(model, params, x, options):
    num = options.likelihood_num_samples

    def draw(key, indices):
        weights = scores.importance_log_weights(key, model, params, x[indices], num)
        tailed = num >= partition.FEWEST_WEIGHTS
        k = partition.pareto_k(weights) if tailed else None
        return partition.estimate(weights), k

    return draw


def _annealed(start, model, params, x, options):
    num, steps = options.likelihood_num_samples, options.likelihood_num_temperatures
    # One schedule for all batches: tuned once, compiled once.
    schedule = partition.tune(
        jax.random.key(0), model, params, x=jnp.asarray(x), start=start,
        num_temperatures=steps,
    )  # fmt: skip
    draw = functools.partial(
        partition.log_likelihood,
        model=model,
        params=params,
        log_z=0.0,
        start=start,
        num_particles=num,
        num_temperatures=steps,
        schedule=schedule,
    )
    return lambda key, indices: (draw(key, x=jnp.asarray(x[indices])), None)
