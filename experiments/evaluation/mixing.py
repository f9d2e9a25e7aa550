"""Do the chains mix? R-hat and effective sample sizes of what they draw, by ArviZ.

Chains four times as long as in sampling are read along their second half: 64 of the
prior, and 4 of the posterior of each of 16 held-out images. Watched are the energy E(z)
of the prior's chains and log p(x|z) of the posterior's, and the features that decoded
images have in the data set's classifier, where there is one. R-hat compares chains with
each other: near 1 they have forgotten where they started; at 1.1 and above one chain
alone has not visited all that they visit together. (Rank-normalised R-hat and bulk ESS
of arXiv 1903.08008.)
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from arviz_stats.base import array_stats

import jebm
from experiments.data.pixels import to_unit
from experiments.evaluation import classifier
from experiments.evaluation.chains import chain_table
from experiments.evaluation.contract import Result
from experiments.evaluation.samplers import tempered
from experiments.evaluation.traces import energies_along, log_likelihoods_along
from experiments.models import active_chains
from experiments.runs import Run
from jebm.chains import decode, example_keys, trace_chains

_LENGTH = 4  # times the length of the chain
_DRAWS = 50  # at most, of each chain
_CHAINS = 64
_PER_IMAGE = 4  # chains of one posterior
_COLUMNS = {
    "rhat": "R-hat, energy",
    "rhat_features": "R-hat, features",
    "ess": "effective draws, energy",
    "ess_features": "effective draws, features",
    "draws": "draws",
}
_ABOUT = (
    "How the chains mix, over four times their usual length. Above an R-hat of 1.1 a "
    "single chain misses modes; samples of many chains can still be right, which their "
    "distances at one and at four times the length tell."
)


def evaluate(key: jax.Array, run: Run) -> Result:
    """Takes R-hat and ESS of the chains that the model has, see `mixing`."""
    features, name = None, run.experiment.data.name
    if name in classifier.known():
        features, _ = classifier.load(name)
    num_temperatures = run.experiment.eval.num_temperatures
    numbers = mixing(
        key, run.model, run.params, run.heldout, features, num_temperatures
    )
    if not numbers:  # a model without chains
        return Result({})
    return Result(numbers, {}, _ABOUT, (chain_table(numbers, _COLUMNS),))


def mixing(
    key,
    model: jebm.Model,
    params: jebm.Params,
    heldout: np.ndarray,
    features: Callable[[np.ndarray], np.ndarray] | None,
    num_temperatures: int = 0,
) -> dict[str, float]:
    """Takes R-hat and ESS of the chains that the model has.

    Args:
      key: typed key.
      model: the model.
      params: its parameters.
      heldout: images, uint8 [N, H, W, C], of whose posteriors the first are taken.
      features: float images [N, H, W, C] -> [N, D]; None to watch no features.
      num_temperatures: of the tempered sampler; 0 to leave it out.

    Returns:
      prior_rhat, prior_ess of the energy and prior_rhat_features, prior_ess_features:
      the largest R-hat and the smallest ESS of any feature; likewise tempered_*, and
      posterior_* of the worst image. ESS counts the draws of all chains together, of
      which there are prior_draws, and posterior_draws of an image. Infinite or NaN
      where values do not vary.
    """
    chains = active_chains(model)
    numbers: dict[str, float] = {}
    priors = {"prior": chains["prior"]} if "prior" in chains else {}
    if priors and num_temperatures:
        priors["tempered"] = tempered(model, num_temperatures)
    for name, chain in priors.items():
        latents = _trace(key, model, params, chain)
        energies = energies_along(model, params, latents)
        numbers |= _statistics(name, energies, model, params, latents, features, 1)
    if "posterior" in chains:
        numbers |= _of_posterior(key, model, params, heldout, features)
    return numbers


def _of_posterior(key, model, params, heldout, features):
    """Computes the statistics of chains of the first images, each a law of its own."""
    images = heldout[np.arange(_CHAINS // _PER_IMAGE) % len(heldout)]
    x = to_unit(jnp.asarray(np.repeat(images, _PER_IMAGE, axis=0)))
    latents = _trace(key, model, params, model.chains.posterior, x)
    log_p = log_likelihoods_along(model, params, x, latents)
    groups = len(images)
    return _statistics("posterior", log_p, model, params, latents, features, groups)


def _trace(key, model, params, chain, x=None):
    """Draws latents along the second half of chains, [draws, chains, *shape_i]."""
    total = _LENGTH * chain.num_steps
    every = max(1, total // (2 * _DRAWS))
    chain = dataclasses.replace(chain, num_steps=total - total % every)
    keys = example_keys(key, jnp.arange(_CHAINS))
    traced = jax.jit(
        lambda keys, params, x: trace_chains(
            keys, model, params, chain, every=every, x=x
        )
    )(keys, params, x)
    half = (len(traced[0]) - 1) // 2
    return jax.tree.map(lambda z: z[-half:], traced)


def _statistics(name, values, model, params, latents, features, groups):
    """Groups the chains of values [draws, chains] by their laws."""
    draws = len(values)
    num = draws * _CHAINS // groups
    numbers = {f"{name}_draws": num}
    watched = {"": np.asarray(values)[..., None]}
    if features is not None:
        drawn = [
            features(np.nan_to_num(np.asarray(decode(model, params, z))))
            for z in (jax.tree.map(lambda z, t=t: z[t], latents) for t in range(draws))
        ]
        watched["_features"] = np.stack(drawn)
    for suffix, array in watched.items():
        # [draws, groups, chains of a group, values]
        array = array.reshape(draws, groups, -1, array.shape[-1])
        with np.errstate(all="ignore"):  # values that never change
            rhat = array_stats.rhat(array, chain_axis=2, draw_axis=0)
            ess = array_stats.ess(array, chain_axis=2, draw_axis=0)
        # Chains too short for their autocorrelation have ArviZ's ceiling as ESS.
        ess = np.where(ess < 0.999 * num * np.log10(num), ess, np.nan)
        numbers[f"{name}_rhat{suffix}"] = float(np.max(_varying(rhat, array)))
        numbers[f"{name}_ess{suffix}"] = float(np.min(_varying(ess, array)))
    return numbers


def _varying(statistic, array):
    """Keeps the statistic, [groups, values], where a value varies; NaN if none does."""
    varies = np.ptp(array, axis=(0, 2)) > 0
    return statistic[varies] if varies.any() else np.array([np.nan])
