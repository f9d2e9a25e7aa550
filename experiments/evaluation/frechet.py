"""Frechet distances in the features of a small classifier."""

import jax
import numpy as np

import jebm
from experiments.data.pixels import to_unit
from experiments.evaluation import mixing
from experiments.runtime.batching import map_batches
from jebm.chains import decode
from jebm.metrics import feature_statistics, frechet_distance

LONG_CHAIN = 4


def distances(key, model, params, heldout, features, options) -> dict[str, float]:
    """The Frechet distances of the module's docstring, and the gap of energies.

    One of samples that are not finite is nan.

    Args:
      key: typed key, [].
      model: the model.
      params: its parameters.
      heldout: images, uint8 [N, H, W, C].
      features: images [N, H, W, C] in [0, 1] -> [N, D].
      options: `config.eval`.
    """
    num, batch_size = options.num_samples, options.batch_size
    real = features(to_unit(heldout))
    reference = feature_statistics(real)

    def distance(images):
        if not np.isfinite(images).all():
            return np.nan
        return frechet_distance(*feature_statistics(features(images)), *reference)

    key_posterior, key_prior = jax.random.split(key)

    def prior_samples(**chain):
        def draw(key, indices):
            return jebm.sample(key, model, params, len(indices), **chain)

        return map_batches(key_prior, draw, np.arange(num), batch_size)

    def posterior_samples(key, indices):
        x = to_unit(heldout[indices])
        latents = jebm.posterior_sample(key, model, params, x)
        return jebm.Samples(_decode(model, params, latents), latents)

    # Spread over the split; a small one more than once, each time with other noise.
    spread = np.arange(min(num, len(heldout))) * len(heldout) // min(num, len(heldout))
    chosen = np.resize(spread, num)
    positive = map_batches(key_posterior, posterior_samples, chosen, batch_size)
    negative = prior_samples()
    found = {
        "frechet": distance(negative.x),
        "frechet_posterior": distance(positive.x),
        "frechet_real": float(np.mean([_of_halves(real, i) for i in range(10)])),
    }
    if model.energy is None:
        return found
    long_chain = LONG_CHAIN * model.chains.prior.num_steps
    gap = (
        jebm.energy(model, params, negative.latents).mean()
        - jebm.energy(model, params, positive.latents).mean()
    ).item()
    if options.num_temperatures:
        images = prior_samples(
            kernel=mixing.tempered(model, options.num_temperatures)
        ).x
        found["frechet_tempered"] = distance(images)
    return found | {
        "frechet_long_chain": distance(prior_samples(num_steps=long_chain).x),
        "frechet_untilted": distance(prior_samples(prior="gaussian").x),
        "energy_gap_nats": gap,
    }


_decode = jax.jit(decode)


def _of_halves(real, seed):
    order = np.random.default_rng(seed).permutation(len(real))
    first, second = real[order[::2]], real[order[1::2]]
    return frechet_distance(*feature_statistics(first), *feature_statistics(second))
