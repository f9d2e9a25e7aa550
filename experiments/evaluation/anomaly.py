"""Anomaly detection: how well a score tells a class that training has not seen.

The protocol "anomaly", on data with a `data.heldout_class`. The score, and what each
option of eval.anomaly weighs in it, are in `experiments.evaluation.anomaly_score`.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.errors import ConfigError
from experiments.evaluation.anomaly_score import (
    Terms,
    Weights,
    as_they_are,
    detection,
    score,
)
from experiments.evaluation.anomaly_terms import terms_of, with_start
from experiments.evaluation.contract import Drawing, Evaluator, Result, Table
from experiments.options import Experiment
from experiments.runs import Run
from experiments.section import Count, NonNegative
from jebm.kernels import ENCODED


@dataclasses.dataclass(frozen=True)
class Anomaly(Evaluator):
    """How well the score tells the held-out class."""

    SECTION: ClassVar[str] = "eval.anomaly"

    likelihood_weight: NonNegative
    num_augmentations: Count
    num_neighbours: Count
    neighbours_weight: NonNegative
    knn_volume_weight: NonNegative
    posterior_start: Literal["normal", "prior", "encoder", "mode"] | None

    def __post_init__(self):
        super().__post_init__()
        weights = self.weights
        if weights[1:] != (0, 0) and not self.num_neighbours:
            raise ConfigError(
                "eval.anomaly.neighbours_weight and eval.anomaly.knn_volume_weight "
                "weigh neighbours: set eval.anomaly.num_neighbours too, or both to 0; "
                f"got {weights.neighbours} and {weights.volume} with num_neighbours=0"
            )

    @property
    def weights(self) -> Weights:
        """Returns the weights of the score."""
        return Weights(
            self.likelihood_weight, self.neighbours_weight, self.knn_volume_weight
        )

    def check(self, experiment: Experiment) -> None:
        """Refuses data without anomalies, and a posterior that the model cannot have.

        Raises:
          ConfigError: naming the field.
        """
        if experiment.data.heldout_class is None:
            raise ConfigError(
                "eval.protocol 'anomaly' needs a data.heldout_class, got None"
            )
        if self.posterior_start in ENCODED and not experiment.has_encoder:
            raise ConfigError(
                f"eval.anomaly.posterior_start {self.posterior_start!r} needs an "
                "encoder that learns, and learning.method 'mle' has none"
            )

    def check_neighbours(self, training) -> None:
        """Refuses more neighbours than there are images of training.

        Raises:
          ConfigError: naming the field.
        """
        if self.num_neighbours > len(training):
            raise ConfigError(
                f"eval.anomaly.num_neighbours of {self.num_neighbours} is more than "
                f"the {len(training)} images of training"
            )

    def terms(self, key: jax.Array, run: Run) -> Terms:
        """Returns the terms of the score of every held-out image.

        Raises:
          ConfigError: if there are fewer images of training than neighbours.
        """
        self.check_neighbours(run.splits["train"].images)
        run = with_start(run, self.posterior_start)
        return terms_of(key, run, self.num_augmentations, self.num_neighbours)

    def evaluate(self, key: jax.Array, run: Run) -> Result:
        """Measures areas under the curves of the score and its parts; draws scores."""
        terms = self.terms(key, run)
        heldout = run.experiment.data.heldout_class
        anomalous = run.splits["test"].labels == heldout
        numbers = detection(terms, anomalous, self.weights)
        own = run.experiment.chains["posterior"]["start"]
        facts = {
            "heldout_class": heldout,
            **dataclasses.asdict(self),
            "posterior_start": self.posterior_start or own,
            "num_posterior_samples": run.experiment.eval.num_posterior_samples,
            "num_normal": int((~anomalous).sum()),
            "num_anomalous": int(anomalous.sum()),
        }
        about = (
            f"Anomaly detection at step {run.step}: {facts['num_anomalous']} images of "
            f"class {heldout}, which training has not seen, among "
            f"{facts['num_normal']} of the others, {_drawn(facts)}. Chance "
            f"has an AUPRC of {numbers['prevalence']:.3f} and an AUROC of .5."
        )
        drawing = Drawing(
            histograms(terms, anomalous, self.weights),
            "Scores, and parts of them, of test images of the training classes and of "
            "the class that training has not seen",
        )
        table = self._table(numbers)
        return Result(numbers, facts, about, (table,), figures={"anomaly": drawing})

    def _table(self, numbers):
        parts = {
            "": f"minus the score: weight {self.likelihood_weight:g} of log p(x|z), "
            f"{self.num_augmentations} maps, weight {self.neighbours_weight:g} of "
            f"{self.num_neighbours} neighbours, weight {self.knn_volume_weight:g} of "
            "the volume to the nearest",
            "_absolute": "without neighbours and volume",
            "_unweighed": "minus score(0)",
            "_likelihood": "minus log p(x|z)",
            "_prior": "E(z) minus log p_beta(z)",
            "_energy": "E(z)",
            "_distance": "distance of eps to the nearest training image",
        }
        rows = [
            [f"{title} (auprc{part})", numbers[f"auprc{part}"], numbers[f"auroc{part}"]]
            for part, title in parts.items()
            if f"auprc{part}" in numbers
        ]
        return Table(["", "AUPRC", "AUROC"], rows)


def _drawn(facts):
    if facts["posterior_start"] == "mode":
        return "scored at the mode of the encoder"
    return f"with {facts['num_posterior_samples']} posterior samples an image"


def histograms(terms: Terms, anomalous: np.ndarray, weights: Weights) -> Figure:
    """Draws the scores of both kinds of images, but for the .4% farthest, and parts."""
    plain = as_they_are(terms)
    panels: dict[str, np.ndarray] = {
        "minus the score": -score(terms, weights),
        "minus log p(x|z)": -plain.log_likelihood,
        "minus log p_beta(z)": -plain.log_prior,
        "E(z)": plain.energy,
    }
    panels = {  # without those of what the model does not have
        title: values for title, values in panels.items() if np.ptp(values) > 0
    }
    num = len(panels)
    figure = Figure(figsize=(4 * max(num, 1), 3.2), layout="constrained")
    if not panels:
        figure.suptitle("no score is finite")
    for i, (title, values) in enumerate(panels.items()):
        axis = figure.add_subplot(1, num, i + 1)
        low, high = np.percentile(values, [0.2, 99.8])
        bins = np.linspace(low, high, 60).tolist()
        for kind, colour, name in (
            (~anomalous, "#0072B2", "classes of training"),
            (anomalous, "#E69F00", "class not seen"),
        ):
            axis.hist(
                values[kind], bins, density=True, alpha=0.6, color=colour, label=name
            )
        axis.set(title=title, xlabel="nats", yticks=[])
        axis.xaxis.set_major_locator(MaxNLocator(4))
        if i == 0:
            axis.legend(fontsize=8)
    return figure
