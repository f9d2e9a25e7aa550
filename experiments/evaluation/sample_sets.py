"""The sets of images that are held against real ones, whatever the features.

Images are the decoder's means. A set's name ends the names of its numbers:

    ""           samples as the run draws them
    long_chain   with a prior chain 4 times as long
    exact        by tested steps of half the size, `eval.exact_length` times as many (0:
                 left out), which keep the density's own law; exact_acceptance is the
                 share of them that was accepted: well below .5 these chains have hardly
                 moved
    tempered     by the sampler of `jebm.tempering`, as long as the run's chain, with
                 `eval.num_temperatures` replicas where that is not 0
    untilted     of the Gaussian prior of the same generator
    posterior    held-out images, each decoded from its posterior sample: the floor of
                 any prior. (Of other images, where an evaluator compares with others.)
    perfect      the same of training images: samples of a prior that is the aggregate
                 posterior. (Left out where the evaluator compares with these images.)
    real         one random half of the real images against the other, which is for the
                 evaluator to take
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

import jebm
from experiments.data.pixels import to_unit
from experiments.evaluation import chains
from experiments.evaluation.samplers import exact, lengthened, tempered
from experiments.models import active_chains
from experiments.runs import Run
from experiments.runtime.batching import map_batches
from jebm.chains import decode

TITLES = {
    "": "samples",
    "long_chain": "samples by a chain 4 times as long",
    "exact": "samples of the density's own law, by many short tested steps",
    "tempered": "samples by the tempered sampler, with as many steps",
    "untilted": "samples of the Gaussian prior of the same generator",
    "posterior": "held-out images from their posterior: the floor of any prior",
    "perfect": "training images from their posterior: what a perfect prior draws",
    "real": "one half of the held-out images against the other",
}


def named(number: str, name: str) -> str:
    """Names a number of a set.

    Example:
      >>> named("frechet", "untilted"), named("frechet", "")
      ('frechet_untilted', 'frechet')
    """
    return f"{number}_{name}" if name else number


def measure(
    key: jax.Array,
    run: Run,
    numbers_of: Callable[[np.ndarray], Mapping[str, float]],
    images: Any = None,
) -> dict[str, float]:
    """Draws each set, one after the other, and measures it; and the gap of energies.

    Args:
      key: typed key, [].
      run: the run; of its options count those of config.eval.
      numbers_of: images of a set [N, H, W, C], in [0, 1] where they are finite ->
        numbers.
      images: that the set "posterior" is decoded of, uint8 [N, H, W, C], without the
        set "perfect"; None for those that are held out, and with it.

    Returns:
      The numbers, `named` by the sets; and where there are energies energy_gap_nats.
    """
    key_posterior, key_prior = jax.random.split(key)
    key_perfect = jax.random.fold_in(key_posterior, 1)
    numbers: dict[str, float] = {}

    def add(name, samples):
        measured = numbers_of(samples.x)
        numbers.update({named(k, name): value for k, value in measured.items()})

    decoded = run.heldout if images is None else images
    positive = _posterior_samples(key_posterior, run, decoded)
    negative = _prior_samples(key_prior, run)
    add("", negative)
    add("posterior", positive)
    if images is None:
        add("perfect", _posterior_samples(key_perfect, run, run.training))
    if run.model.energy is not None and jebm.priors.has_density(run.model):
        gap = _mean_energy(run, negative) - _mean_energy(run, positive)
        numbers["energy_gap_nats"] = gap.item()
    for name, sampler in _other_samplers(run).items():
        add(name, _prior_samples(key_prior, run, **sampler))
    return numbers


def acceptance(key: jax.Array, run: Run) -> dict[str, float]:
    """Returns the accepted share of the exact law's steps, if that set is drawn."""
    if "exact" not in _other_samplers(run):
        return {}
    chain = exact(run.model, run.experiment.eval.exact_length)
    return {"exact_acceptance": chains.acceptance_rate(key, run, chain)}


def told(numbers: Mapping[str, float]) -> str:
    """Says the acceptance and the gap, a sentence each, if they are there.

    Example:
      >>> told({"energy_gap_nats": -1.0})
      ' Gap E- minus E+, to held-out images: -1 nats.'
    """
    text = ""
    if (accepted := numbers.get("exact_acceptance")) is not None:
        text += f" The sampler of the exact law accepted {accepted:.0%} of its steps."
    if (gap := numbers.get("energy_gap_nats")) is not None:
        text += f" Gap E- minus E+, to held-out images: {gap:.3g} nats."
    return text


def halves(real: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Halves features [N, D], N >= 2, at random; the first half may have one more."""
    order = np.random.default_rng(seed).permutation(len(real))
    return real[order[::2]], real[order[1::2]]


def _other_samplers(run):
    """Returns arguments of `jebm.sample`, by name, to compare the prior's chain with.

    A prior that draws in its own way has the Gaussian one beside it alone; without any
    tilt all samples are one.
    """
    samplers, prior = {}, active_chains(run.model).get("prior")
    if jebm.priors.draws_itself(run.model):
        samplers["untilted"] = {"prior": "gaussian"}
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
    """Draws `eval.num_samples` samples; `sampler` holds arguments of `jebm.sample`."""

    def draw(key, indices):
        return jebm.sample(key, run.model, run.params, len(indices), **sampler)

    options = run.experiment.eval
    return map_batches(key, draw, np.arange(options.num_samples), options.batch_size)


def _posterior_samples(key, run, images):
    """Decodes a posterior sample of each image, `eval.num_samples` in all."""
    options = run.experiment.eval

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
