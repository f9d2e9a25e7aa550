"""The scores of images, one for each number of layers that is left out."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jebm
from experiments.data.pixels import to_unit
from experiments.data.sources import Streamed
from experiments.runs import Run
from experiments.runtime.batching import map_batches


class LayerTerms(NamedTuple):
    """The two terms of score(k), for every k: tuples of [N], nats, k = 0 first."""

    log_likelihood: tuple[np.ndarray, ...]  # log p(x|z)
    log_latents: tuple[np.ndarray, ...]  # log p_beta(z) - E(z)

    @property
    def scores(self) -> tuple[np.ndarray, ...]:
        """Returns score(k), for every k: a tuple of [N]."""
        return tuple(map(np.add, self.log_likelihood, self.log_latents))


def terms_of(key: jax.Array, run: Run, images: np.ndarray | Streamed) -> LayerTerms:
    """Returns the terms of the scores of images.

    Args:
      key: typed key.
      run: the run.
      images: uint8 [N, H, W, C].

    Raises:
      ConfigError: if the prior has no density.
    """
    run.demand_density()
    num = run.experiment.eval.num_posterior_samples

    def draw(key, indices):
        x = to_unit(jnp.asarray(images[indices]))
        terms = [
            jebm.scores.score_terms(key, run.model, run.params, x, k, num_samples=num)
            for k in range(len(run.model.backbone.latent_shapes))
        ]
        return LayerTerms(
            tuple(t.log_likelihood for t in terms),
            tuple(t.log_prior - t.energy for t in terms),
        )

    batch_size = min(run.experiment.eval.batch_size, len(images))
    return map_batches(key, draw, np.arange(len(images)), batch_size)


def statistics(scores: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
    """Names what is high for images of elsewhere: -score(k) and LLR^{>k}.

    Example:
      >>> {k: v.item() for k, v in statistics((np.array(3.0), np.array(1.0))).items()}
      {'-score(0)': -3.0, '-score(1)': -1.0, 'LLR>1': 2.0}
    """
    negative = {f"-score({k})": -score for k, score in enumerate(scores)}
    ratios = {f"LLR>{k}": scores[0] - scores[k] for k in range(1, len(scores))}
    return negative | ratios
