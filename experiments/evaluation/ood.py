"""Out-of-distribution detection: which scores find images from elsewhere.

The protocol "ood". Every score(k) and LLR^{>k} of `jebm.scores` is a statistic, signed
so that high means elsewhere: minus score(k), and LLR^{>k} itself. With
`eval.ood.num_calibration` images of training there is one more, the surprise of
`experiments.evaluation.surprise`. One of them is chosen, once, on outliers that the
table does not hold (`eval.ood.chosen_on`): the one of the largest AUROC.
"""

import dataclasses
from typing import ClassVar

import jax
import numpy as np
from matplotlib.figure import Figure
from sklearn import metrics

from experiments.errors import ConfigError
from experiments.evaluation import outliers
from experiments.evaluation.contract import Drawing, Evaluator, Result, Table
from experiments.evaluation.layer_scores import statistics, terms_of
from experiments.evaluation.surprise import NAME, surprise
from experiments.options import Experiment
from experiments.runs import Run
from experiments.section import Count
from jebm.names import unknown_name_message

INSIDE, OUTSIDE = "#0072B2", "#E69F00"  # colour-blind-safe

Statistics = dict[str, np.ndarray]  # by name, of images [N]


@dataclasses.dataclass(frozen=True)
class Ood(Evaluator):
    """Measures how well every score finds images from elsewhere."""

    SECTION: ClassVar[str] = "eval.ood"

    outliers: tuple[str, ...]
    chosen_on: str
    num_calibration: Count

    def check(self, experiment: Experiment) -> None:
        """Refuses outliers that are unknown, not there or would choose for themselves.

        Raises:
          ConfigError: naming the field.
        """
        requested = [("chosen_on", self.chosen_on)]
        requested += [("outliers", name) for name in self.outliers]
        for field, name in requested:
            if name not in outliers.known():
                raise ConfigError(
                    unknown_name_message(self.full_name(field), name, outliers.known())
                )
            outliers.require(name, experiment.data)
        if not self.outliers or self.chosen_on in self.outliers:
            raise ConfigError(
                "eval.ood.outliers must name sets other than eval.ood.chosen_on, got "
                f"{self.outliers} and {self.chosen_on!r}"
            )

    def evaluate(self, key: jax.Array, run: Run) -> Result:
        """Scores held-out images and all outliers, and draws their histograms.

        For each outlier set NAME the numbers are the lists auroc_NAME, auprc_NAME and
        fpr80_NAME over the fact "statistics"; and of "chosen", the statistic chosen on
        `chosen_on`, chosen_auroc_NAME, chosen_auprc_NAME and chosen_fpr80_NAME.
        """
        inside, outside = self._statistics(key, run)
        measured = {
            name: [areas(inside[s], values[s]) for s in inside]
            for name, values in outside.items()
        }
        auroc = {name: [a["auroc"] for a in of] for name, of in measured.items()}
        chosen = int(np.argmax(auroc[self.chosen_on]))
        names, num = list(inside), len(next(iter(inside.values())))
        facts = {
            "statistics": names,
            "chosen": names[chosen],
            "chosen_on": self.chosen_on,
            "outliers": list(self.outliers),
            "num_inside": num,
            "num_outside": num,
            "num_posterior_samples": run.experiment.eval.num_posterior_samples,
        }
        about = (
            f"Out-of-distribution detection at step {run.step}: AUROC of every score, "
            f"for {num} images from elsewhere against as many held-out images. "
            f"{names[chosen]} is the one to use: it tells {self.chosen_on!r} best, a "
            "set that chooses and that no other number is of."
        )
        drawing = Drawing(
            histograms(inside, outside, chosen),
            "Scores of held-out images and of images from elsewhere",
        )
        table = Table(["", *names], [[name, *row] for name, row in auroc.items()])
        numbers = self._numbers(measured, chosen)
        return Result(numbers, facts, about, (table,), figures={"ood": drawing})

    def _statistics(self, key, run) -> tuple[Statistics, dict[str, Statistics]]:
        """Scores held-out images and each outlier set, the same number of each."""
        images = run.heldout[: run.experiment.eval.num_samples]
        names = (self.chosen_on, *self.outliers)
        sets = {n: outliers.outliers(n, images, run.experiment.data) for n in names}
        num = min(map(len, sets.values()))
        terms = [
            terms_of(jax.random.fold_in(key, i), run, members[:num])
            for i, members in enumerate([images, *sets.values()])
        ]
        inside, *outside = (statistics(each.scores) for each in terms)
        if self.num_calibration:
            known = terms_of(
                jax.random.fold_in(key, len(terms)),
                run,
                run.training[: self.num_calibration],
            )
            for named, each in zip((inside, *outside), terms, strict=True):
                named[NAME] = surprise(each, known)
        return inside, dict(zip(names, outside, strict=True))

    def _numbers(self, measured, chosen):
        numbers = {
            f"{measure}_{name}": [of_one[measure] for of_one in of_all]
            for name, of_all in measured.items()
            for measure in of_all[0]
        }
        return numbers | {
            f"chosen_{measure}_{name}": value
            for name in self.outliers
            for measure, value in measured[name][chosen].items()
        }


def areas(inside: np.ndarray, outside: np.ndarray) -> dict[str, float]:
    """Returns AUROC, AUPRC (average precision) and FPR80; the outside is positive.

    FPR80 is the false-positive rate where four of five positives are found.

    Example:
      >>> areas(np.array([0.0, 1.0, 2.0, 3.0]), np.array([2.5, 4.0, 5.0, 6.0]))
      {'auroc': 0.9375, 'auprc': 0.95, 'fpr80': 0.25}
    """
    labels = np.repeat([0, 1], [len(inside), len(outside)])
    values = np.concatenate([inside, outside])
    false, true, _ = metrics.roc_curve(labels, values, drop_intermediate=False)
    return {
        "auroc": float(metrics.roc_auc_score(labels, values)),
        "auprc": float(metrics.average_precision_score(labels, values)),
        "fpr80": float(false[np.argmax(true >= 0.8)]),
    }


def histograms(
    inside: Statistics, outside: dict[str, Statistics], chosen: int
) -> Figure:
    """Draws every statistic (columns) of every outlier set (rows) over the inliers'."""
    rows, columns = len(outside), len(inside)
    figure = Figure((2.6 * columns, 1.6 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for i, (axis, statistic) in enumerate(zip(axes[0], inside, strict=True)):
        axis.set_title(statistic + (" (chosen)" if i == chosen else ""), fontsize=10)
    for row, (name, values) in zip(axes, outside.items(), strict=True):
        row[0].set_ylabel(name, fontsize=9)
        for axis, statistic in zip(row, inside, strict=True):
            _draw_both(axis, inside[statistic], values[statistic])
    figure.suptitle(
        "Images of the data set (blue) and from elsewhere (orange), nats, axes "
        "compressed away from the former",
        fontsize=10,
    )
    return figure


def _draw_both(axis, inside, outside):
    """Draws histograms of two sets of values; some lie decades apart."""
    unit = max(float(np.std(inside)), 1e-6)
    centre = float(np.median(inside))

    def compressed(values):  # around the centre the axis is linear
        return np.arcsinh((values - centre) / unit)

    both = compressed(np.concatenate([inside, outside]))
    bins = np.linspace(both.min(), both.max(), 50)
    for values, colour in ((inside, INSIDE), (outside, OUTSIDE)):
        axis.hist(compressed(values), bins, density=True, alpha=0.6, color=colour)
    ticks = np.linspace(bins[0], bins[-1], 3)
    labels = [f"{centre + unit * np.sinh(t):.3g}" for t in ticks]
    axis.set_xticks(ticks, labels, fontsize=7)
    axis.set_yticks([])
