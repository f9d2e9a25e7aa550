"""Anomaly detection: how well a score tells a class that training has not seen.

The score of an image is that of `jebm.scores` at k = 0 with the likelihood weighed,

    w log p(x|z) + log p_beta(z) - E(z)        w = eval.anomaly_likelihood_weight

and minus it is high for anomalies; the held-out class is the positive one. A generator
is trained sharp, with a small sigma_x, so that its latents hold what tells one image
from another; at the weight of training, w = 1, the error of the pixels then drowns what
the prior says of them. A Gaussian likelihood of weight w is that of sigma_x / sqrt(w).
"""

import pathlib

import jax.numpy as jnp
import matplotlib
import numpy as np
from sklearn import metrics

import jebm
from experiments import datasets
from experiments.sample import in_batches
from jebm.objectives import Positive

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def terms_of(key, model, params, images: np.ndarray, options) -> Positive:
    """The terms of score(0) of images, uint8 [N, H, W, C]; `options` is config.eval."""

    def draw(key, indices):
        x = datasets.to_unit(jnp.asarray(images[indices]))
        num = options.num_posterior_samples
        return jebm.scores.score_terms(key, model, params, x, num_samples=num)

    return in_batches(key, draw, np.arange(len(images)), options.batch_size)


def weighed(terms: Positive, weight: float) -> np.ndarray:
    """Minus the score of the module's docstring, [N], nats: high is anomalous."""
    likelihood = weight * terms.log_likelihood
    return terms._replace(log_likelihood=likelihood).loss()


def detection(
    terms: Positive, anomalous: np.ndarray, weight: float
) -> dict[str, float]:
    """Areas under the precision-recall and the ROC curve, of the score and its parts.

    Args:
      terms: of `terms_of`, [N].
      anomalous: whether each image is of the held-out class, bool [N].
      weight: of the likelihood.

    Returns:
      auprc (area under the curve by trapezoids, as in the literature on this split) and
      auroc of the score; "_unweighed", of score(0) itself; "_likelihood" and "_prior",
      of its parts alone, log p(x|z) and log p_beta(z) - E(z); and the prevalence of
      anomalies, the auprc of chance.

    Example:
      >>> nats = np.array([0.0, 1.0, 2.0, 3.0])
      >>> terms = Positive(nats, np.zeros(4), np.zeros(4), np.zeros(4))
      >>> found = detection(terms, np.array([True, True, False, False]), weight=0.5)
      >>> found["auprc"], found["auroc"], found["auroc_prior"], found["prevalence"]
      (1.0, 1.0, 0.5, 0.5)
    """
    parts = {
        "": weighed(terms, weight),
        "_unweighed": weighed(terms, 1.0),
        "_likelihood": -terms.log_likelihood,
        "_prior": weighed(terms, 0.0),
    }
    found = {"prevalence": float(np.mean(anomalous))}
    for name, values in parts.items():
        precision, recall, _ = metrics.precision_recall_curve(anomalous, values)
        found[f"auprc{name}"] = float(metrics.auc(recall, precision))
        found[f"auroc{name}"] = float(metrics.roc_auc_score(anomalous, values))
    return found


def histogram(
    terms: Positive, anomalous: np.ndarray, weight: float, file: pathlib.Path
) -> None:
    """Draws the scores of both kinds of images, and their parts."""
    panels = {
        f"minus the score, likelihood weighed {weight:g}": weighed(terms, weight),
        "minus log p(x|z)": -terms.log_likelihood,
        "E(z) minus log p_beta(z)": weighed(terms, 0.0),
    }
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        bins = np.linspace(*np.percentile(values, [0.2, 99.8]), 60)
        for kind, colour, name in (
            (~anomalous, "#0072B2", "classes of training"),
            (anomalous, "#E69F00", "held-out class"),
        ):
            axis.hist(
                values[kind], bins, density=True, alpha=0.6, color=colour, label=name
            )
        axis.set(title=title, xlabel="nats", yticks=[])
    axes[0].legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)
