"""Test log-likelihood: measures the density of images, in nats and in bits.

The protocol "likelihood". What is estimated, and by which estimator, is told by
`experiments.evaluation.log_likelihood`.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax
import numpy as np

import jebm
from experiments.errors import ConfigError
from experiments.evaluation.contract import (
    Evaluator,
    Number,
    Result,
    Table,
    rows_of,
)
from experiments.evaluation.log_likelihood import (
    bits_per_dim,
    estimator_of,
    is_discrete,
    observed,
    tilted_log_z,
)
from experiments.options import Experiment
from experiments.runs import Run
from experiments.runtime.batching import map_batches
from experiments.section import Pair, Positive

_HEAVY = 0.7  # k of `importance.pareto_k`
_MANY_HEAVY_TAILS = 0.05  # share of images
_TITLES = {
    "log_likelihood_nats": "log-likelihood, nats",
    "log_likelihood_error": "its standard error, of the estimator",
    "log_likelihood_spread": "standard deviation between images",
    "bits_per_dim": "bits per dimension",
    "effective_samples": "effective samples of the median image",
    "heavy_tailed_share": "share of images with a Pareto k above .7",
    "log_likelihood_nats_untilted": "log-likelihood of the Gaussian prior, nats",
    "log_likelihood_error_untilted": "its standard error",
    "bits_per_dim_untilted": "bits per dimension of the Gaussian prior",
    "heavy_tailed_share_untilted": "share of images with a Pareto k above .7 under it",
    "log_z_nats": "log Z of the tilted prior, nats",
    "log_z_error": "its standard error",
    "log_z_effective_samples": "its effective samples",
    "log_z_reverse_nats": "log Z, annealed back from the prior chain, nats",
    "log_z_reverse_error": "its standard error",
    "log_z_reverse_effective_samples": "its effective samples",
    "log_z_gap_nats": "gap of the two, backwards minus forwards, nats",
    "log_z_unseen_share": "share of the chain's samples that annealing cannot reach",
    "log_z_agrees": "the two agree",
}


@dataclasses.dataclass(frozen=True)
class Likelihood(Evaluator):
    """Log-likelihood of held-out images."""

    SECTION: ClassVar[str] = "eval.likelihood"

    estimator: Literal["importance", "annealed", "bridged"]
    num_images: Pair
    num_samples: Pair
    num_temperatures: Pair
    batch_size: Positive

    def check(self, experiment: Experiment) -> None:
        """Refuses what is no density of images, and an encoder that does not draw.

        Raises:
          ConfigError: naming the field.
        """
        bernoulli = experiment.likelihood["name"] == "bernoulli"
        if bernoulli and not experiment.data.binarize:
            raise ConfigError(
                "eval.protocol 'likelihood' with the likelihood 'bernoulli', which is "
                "no density of grey images, needs config.data.binarize=True"
            )
        if self.estimator == "bridged" and experiment.has_encoder:
            return
        if self.estimator != "annealed" and not experiment.encoder_draws:
            raise ConfigError(
                f"eval.likelihood.estimator {self.estimator!r} needs posterior samples "
                "of an encoder alone; this run's are of a chain: set "
                "config.eval.likelihood.estimator to 'annealed'"
            )

    def evaluate(self, key: jax.Array, run: Run) -> Result:
        """Returns the numbers of `measure`, and what speaks against them."""
        run.demand_density()
        numbers = self.measure(key, run.model, run.params, run.heldout)
        facts = {
            "estimator": self.estimator,
            "samples_per_image": self.num_samples,
            "num_images": min(self.num_images, len(run.heldout)),
        }
        about = (
            f"Log-likelihood of {facts['num_images']} dequantised held-out images at "
            f"step {run.step}: the mean of log p(x), {self.estimator} with "
            f"{self.num_samples} samples an image."
        )
        table = Table(["", "held-out images"], rows_of(numbers, _TITLES))
        return Result(numbers, facts, about, (table,), warnings_of(numbers))

    def measure(
        self, key: jax.Array, model: jebm.Model, params: jebm.Params, images: np.ndarray
    ) -> dict[str, Number]:
        """Estimates log p(x) of the first `num_images` of images uint8 [N, H, W, C].

        Returns:
          log_likelihood_nats, the mean over images; log_likelihood_error, how far
          another run of the estimator may come out, the errors of images and of log Z
          together; log_likelihood_spread, the standard deviation between images;
          bits_per_dim; effective_samples, of the median image; of importance samples,
          where there are enough of them, heavy_tailed_share, of images with a Pareto k
          above .7. All these with "_untilted", of the Gaussian prior of the same
          generator, and what `tilted_log_z` tells, where there is an energy.
        """
        key_noise, key_x, key_z = jax.random.split(key, 3)
        x = observed(key_noise, model, images[: self.num_images])
        if model.energy is None:
            return self._of_prior(key_x, model, params, x)
        # Not one of the three above, in which the numbers of a key are.
        key_draws = jax.random.fold_in(key, 3)
        log_z, partition_numbers = tilted_log_z(key_z, key_draws, model, params)
        untilted = dataclasses.replace(model, energy=None), params._replace(energy={})
        gaussian = self._of_prior(key_x, *untilted, x)
        return {
            **partition_numbers,
            **self._of_prior(
                key_x, model, params, x, log_z.value, log_z.standard_error
            ),
            **{f"{name}_untilted": value for name, value in gaussian.items()},
        }

    def _of_prior(self, key, model, params, x, log_z=0.0, log_z_error=0.0):
        """Computes the numbers of `measure` without log Z, of the model's own prior.

        By default log Z is that of a Gaussian prior, which is known.
        """
        sizes = self.num_samples, self.num_temperatures
        draw = estimator_of(self.estimator, model, params, x, *sizes)
        each, k = map_batches(
            key, draw, np.arange(len(x)), min(self.batch_size, len(x))
        )
        value = each.value - log_z
        variance = np.mean(each.standard_error**2) / len(x) + log_z_error**2
        nats = float(value.mean())
        numbers = {
            "log_likelihood_nats": nats,
            "log_likelihood_error": float(np.sqrt(variance)),
            "log_likelihood_spread": _spread(value),
            "bits_per_dim": bits_per_dim(nats, x[0].size, is_discrete(model)),
            "effective_samples": float(np.median(each.effective_samples)),
        }
        if k is not None:
            numbers["heavy_tailed_share"] = float(np.mean(~(k <= _HEAVY)))
        return numbers


def _spread(value):
    """Returns the deviation over images, which one image does not have."""
    return float(value.std(ddof=1)) if len(value) > 1 else np.nan


def warnings_of(numbers: Mapping[str, Number]) -> tuple[str, ...]:
    """Says in a sentence each which errors cannot be trusted.

    Example:
      >>> warnings_of({"heavy_tailed_share": 0.01, "log_z_agrees": True})
      ()
    """
    sentences = []
    if not numbers.get("log_z_agrees", True):
        forward, back, unseen = (
            numbers[f"log_z_{name}"]
            for name in ("nats", "reverse_nats", "unseen_share")
        )
        sentences.append(
            f"Do not trust log Z and its error: annealing from noise gives "
            f"{forward:.4g} nats, annealing back from samples of the prior chain "
            f"{back:.4g} nats, and a share of {unseen:.2g} of these samples is where "
            "annealing from noise does not reach. It has missed a mode, or the chain "
            "stays where the prior has next to no mass."
        )
    for suffix, prior in (("", ""), ("_untilted", " under the Gaussian prior")):
        share = numbers.get(f"heavy_tailed_share{suffix}", 0.0)
        assert not isinstance(share, list)
        if share > _MANY_HEAVY_TAILS:
            sentences.append(
                f"Do not trust the error of log p(x){prior}: the weights of "
                f"{share:.0%} of the images have a Pareto k above .7, so the "
                "log-likelihood is likely higher. Take the estimator 'bridged'."
            )
    return tuple(sentences)
