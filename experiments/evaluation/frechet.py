"""Frechet distances in the features of a small classifier: the protocol "classifier".

Between `eval.num_samples` samples and the held-out split, in the penultimate features
of a classifier of the data set (`experiments.evaluation.classifier`). Images are the
decoder's means.

    frechet              samples as the run draws them
    frechet_long_chain   with a prior chain 4 times as long
    frechet_exact        by tested steps of half the size, `eval.exact_length` times as
                         many (0: left out), which keep the density's own law;
                         exact_acceptance is the share of them that was accepted: well
                         below .5 these chains have hardly moved
    frechet_tempered     by the sampler of `jebm.tempering`, as long as the run's chain,
                         with `eval.num_temperatures` replicas where that is not 0
    frechet_untilted     of the Gaussian prior of the same generator
    frechet_posterior    held-out images, each decoded from its posterior sample: the
                         floor of any prior
    frechet_real         between two random halves of the held-out images, mean of ten
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

import jebm
from experiments.data.pixels import to_unit
from experiments.evaluation import chains, classifier
from experiments.evaluation.contract import Evaluator, Result, Table, rows_of
from experiments.evaluation.samplers import exact, lengthened, tempered
from experiments.models import active_chains
from experiments.options import Experiment
from experiments.runs import Run
from experiments.runtime.batching import map_batches
from jebm.chains import decode
from jebm.metrics import feature_statistics, frechet_distance

_TITLES = {
    "frechet": "samples",
    "frechet_long_chain": "samples by a chain 4 times as long",
    "frechet_exact": "samples of the density's own law, by many short tested steps",
    "frechet_tempered": "samples by the tempered sampler, with as many steps",
    "frechet_untilted": "samples of the Gaussian prior of the same generator",
    "frechet_posterior": "held-out images from their posterior: the floor of any prior",
    "frechet_real": "one half of the held-out images against the other",
}


@dataclasses.dataclass(frozen=True)
class Frechet(Evaluator):
    """Frechet distances; its options are those that several evaluators share."""

    def lacks(self, experiment: Experiment) -> str:
        """Says so if the data set has no classifier."""
        name = experiment.data.name
        return "" if name in classifier.known() else classifier.absent(name)

    def evaluate(self, key: jax.Array, run: Run) -> Result:
        """Measures the distances of the module's docstring, and the gap of energies."""
        features, loaded = classifier.load(run.experiment.data.name)
        numbers = distances(key, run, features)
        facts = {
            "features": f"{loaded['num_features']} features of {loaded['file']}",
            "features_sha256": loaded["sha256"],
            "num_samples": run.experiment.eval.num_samples,
            "num_reference": len(run.heldout),
        }
        about = (
            f"Frechet distance to {facts['num_reference']} held-out images at step "
            f"{run.step}: {facts['num_samples']} samples, {facts['features']}."
        )
        if "frechet_exact" in numbers:
            chain = exact(run.model, run.experiment.eval.exact_length)
            accepted = chains.acceptance_rate(key, run, chain)
            numbers["exact_acceptance"] = accepted
            about += f" {accepted:.0%} of the exact law's steps were accepted."
        if (gap := numbers.get("energy_gap_nats")) is not None:
            about += f" Gap E- minus E+: {gap:.3g} nats."
        table = Table(["", "Frechet distance, no FID"], rows_of(numbers, _TITLES))
        return Result(numbers, facts, about, (table,))


def distances(
    key: jax.Array, run: Run, features: Callable[[np.ndarray], np.ndarray]
) -> dict[str, float]:
    """Measures the distances of the module's docstring, and the gap of energies.

    One of samples that are not finite is nan.

    Args:
      key: typed key, [].
      run: the run; of its options count those of config.eval.
      features: images [N, H, W, C] in [0, 1] -> [N, D].
    """
    real = features(to_unit(run.heldout))
    reference = feature_statistics(real)
    key_posterior, key_prior = jax.random.split(key)

    def distance(samples):
        if not np.isfinite(samples.x).all():
            return np.nan
        return frechet_distance(*feature_statistics(features(samples.x)), *reference)

    positive = _posterior_samples(key_posterior, run)
    negative = _prior_samples(key_prior, run)
    numbers = {
        "frechet": distance(negative),
        "frechet_posterior": distance(positive),
        "frechet_real": float(np.mean([_of_halves(real, i) for i in range(10)])),
    }
    if run.model.energy is not None:
        gap = _mean_energy(run, negative) - _mean_energy(run, positive)
        numbers["energy_gap_nats"] = gap.item()
    for name, sampler in _other_samplers(run).items():
        samples = _prior_samples(key_prior, run, **sampler)
        numbers[f"frechet_{name}"] = distance(samples)
    return numbers


def _other_samplers(run):
    """Arguments of `jebm.sample`, by name, that the prior's own chain is held against.

    Without a chain of the prior all its samples are one.
    """
    samplers, prior = {}, active_chains(run.model).get("prior")
    if prior is None:
        return samplers
    if num_temperatures := run.experiment.eval.num_temperatures:
        samplers["tempered"] = {"kernel": tempered(run.model, num_temperatures)}
    if length := run.experiment.eval.exact_length:
        samplers["exact"] = {"kernel": exact(run.model, length)}
    samplers["long_chain"] = {"num_steps": lengthened(prior).num_steps}
    samplers["untilted"] = {"prior": "gaussian"}
    return samplers


def _prior_samples(key, run, **sampler):
    """Draws `eval.num_samples` of them; `sampler` has arguments of `jebm.sample`."""

    def draw(key, indices):
        return jebm.sample(key, run.model, run.params, len(indices), **sampler)

    options = run.experiment.eval
    return map_batches(key, draw, np.arange(options.num_samples), options.batch_size)


def _posterior_samples(key, run):
    """Held-out images, each decoded from its posterior sample."""
    images, options = run.heldout, run.experiment.eval

    def draw(key, indices):
        x = to_unit(images[indices])
        latents = jebm.posterior_sample(key, run.model, run.params, x)
        return jebm.Samples(_decode(run.model, run.params, latents), latents)

    # Spread over the split; a small one more than once, each time with other noise.
    num = min(options.num_samples, len(images))
    spread = np.arange(num) * len(images) // num
    chosen = np.resize(spread, options.num_samples)
    return map_batches(key, draw, chosen, options.batch_size)


_decode = jax.jit(decode)


def _mean_energy(run, samples):
    return jebm.energy(run.model, run.params, samples.latents).mean()


def _of_halves(real, seed):
    order = np.random.default_rng(seed).permutation(len(real))
    first, second = real[order[::2]], real[order[1::2]]
    return frechet_distance(*feature_statistics(first), *feature_statistics(second))
