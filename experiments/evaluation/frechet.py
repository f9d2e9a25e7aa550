"""Frechet distances in the features of a small classifier: the protocol "classifier".

Between `eval.num_samples` samples and the held-out split, in the penultimate features
of a classifier of the data set (`experiments.evaluation.classifier`), for the sets of
`experiments.evaluation.sample_sets`: frechet, frechet_long_chain and so on.
frechet_real is the mean of ten divisions into halves.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from experiments.data.pixels import to_unit
from experiments.evaluation import classifier, sample_sets
from experiments.evaluation.contract import Evaluator, Result, Table, rows_of
from experiments.options import Experiment
from experiments.runs import Run
from jebm.metrics import feature_statistics, frechet_distance

_TITLES = {
    sample_sets.named("frechet", name): text
    for name, text in sample_sets.TITLES.items()
}


@dataclasses.dataclass(frozen=True)
class Frechet(Evaluator):
    """Frechet distances; its options are those that several evaluators share."""

    def lacks(self, experiment: Experiment) -> str:
        """Says so where the data set has no classifier."""
        name = experiment.data.name
        return "" if name in classifier.known() else classifier.absent(name)

    def evaluate(self, key: jax.Array, run: Run) -> Result:
        """Measures the distances of the module's docstring, and the gap of energies."""
        features, loaded = classifier.load(run.experiment.data.name)
        numbers = distances(key, run, features)
        numbers |= sample_sets.acceptance(key, run)
        facts = {
            "features": f"{loaded['num_features']} features of {loaded['file']}",
            "features_sha256": loaded["sha256"],
            "num_samples": run.experiment.eval.num_samples,
            "num_reference": len(run.heldout),
        }
        about = (
            f"Frechet distance to {facts['num_reference']} held-out images at step "
            f"{run.step}: {facts['num_samples']} samples, {facts['features']}."
            f"{sample_sets.told(numbers)}"
        )
        table = Table(["", "Frechet distance, not FID"], rows_of(numbers, _TITLES))
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

    def numbers_of(images):
        if not np.isfinite(images).all():
            return {"frechet": np.nan}
        return {
            "frechet": frechet_distance(
                *feature_statistics(features(images)), *reference
            )
        }

    numbers = sample_sets.measure(key, run, numbers_of)
    of_halves = [_of_halves(real, seed) for seed in range(10)]
    return numbers | {"frechet_real": float(np.mean(of_halves))}


def _of_halves(real, seed):
    first, second = sample_sets.halves(real, seed)
    return frechet_distance(*feature_statistics(first), *feature_statistics(second))
