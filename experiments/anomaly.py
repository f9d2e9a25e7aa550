"""Anomaly detection: how well a score tells a class that training has not seen.

The score of an image is that of `jebm.scores` at k = 0 with its terms weighed,

    w log p(x|z) + v log p_beta(z) - E(z) - u log q(z|x)

    w = eval.anomaly_likelihood_weight    v = eval.anomaly_prior_weight
    u = eval.anomaly_posterior_weight

and minus it is high for anomalies; the held-out class is the positive one. A generator
is trained sharp, with a small sigma_x, so that its latents hold what tells one image
from another; at the weight of training, w = 1, the error of the pixels then drowns what
the prior says of them. A Gaussian likelihood of weight w is that of sigma_x / sqrt(w).
At v = 0 the latents' part is a ratio: how much likelier z is under the tilted prior
than under the Gaussian one, log p(z) - log p_beta(z) = -E(z) - log Z. What is plain is
likely under both, whatever its class, and cancels. With u, a density of z counts by the
volume that q(z|x) has there; with w = v = u = 1 and z at the mode of q, this is
Laplace's approximation of log p(x), up to log Z.
"""

import dataclasses
import pathlib
from typing import NamedTuple

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


def scored(model, options):
    """The model with the posterior chain of `options`, config.eval.

    Raises:
      ValueError: if it would start at an encoder that the model does not have.
    """
    if options.anomaly_posterior_start is None:
        return model
    posterior = dataclasses.replace(
        model.chains.posterior, start=options.anomaly_posterior_start
    )
    chains = dataclasses.replace(model.chains, posterior=posterior)
    return dataclasses.replace(model, chains=chains)


def terms_of(key, model, params, images: np.ndarray, options) -> Positive:
    """The terms of score(0) of images, uint8 [N, H, W, C]; `options` is config.eval."""
    model = scored(model, options)

    def draw(key, indices):
        x = datasets.to_unit(jnp.asarray(images[indices]))
        num = options.num_posterior_samples
        return jebm.scores.score_terms(key, model, params, x, num_samples=num)

    return in_batches(key, draw, np.arange(len(images)), options.batch_size)


class Weights(NamedTuple):
    """What the terms of the score are multiplied by."""

    likelihood: float = 1.0
    prior: float = 1.0
    posterior: float = 0.0


def weights_of(options) -> Weights:
    """Those of `options`, config.eval."""
    return Weights(*(options[f"anomaly_{term}_weight"] for term in Weights._fields))


def weighed(terms: Positive, weights: Weights) -> np.ndarray:
    """Minus the score of the module's docstring, [N], nats: high is anomalous."""
    return terms._replace(
        log_likelihood=weights.likelihood * terms.log_likelihood,
        log_prior=weights.prior * terms.log_prior,
        log_q=weights.posterior * terms.log_q,
    ).loss()


def detection(
    terms: Positive, anomalous: np.ndarray, weights: Weights
) -> dict[str, float]:
    """Areas under the precision-recall and the ROC curve, of the score and its parts.

    Args:
      terms: of `terms_of`, [N].
      anomalous: whether each image is of the held-out class, bool [N].
      weights: of the score.

    Returns:
      auprc (area under the curve by trapezoids, as in the literature on this split) and
      auroc of the score; "_unweighed", of score(0) itself; "_likelihood", "_prior",
      "_energy" and "_posterior", of log p(x|z), log p_beta(z) - E(z), -E(z) and
      -log q(z|x) alone; and the prevalence of anomalies, the auprc of chance.

    Example:
      >>> nats = np.array([0.0, 1.0, 2.0, 3.0])
      >>> terms = Positive(nats, np.zeros(4), np.zeros(4), np.zeros(4))
      >>> found = detection(terms, np.array([True, True, False, False]), Weights(0.5))
      >>> found["auprc"], found["auroc"], found["auroc_prior"], found["prevalence"]
      (1.0, 1.0, 0.5, 0.5)
    """
    parts = {
        "": weighed(terms, weights),
        "_unweighed": weighed(terms, Weights()),
        "_likelihood": -terms.log_likelihood,
        "_prior": weighed(terms, Weights(likelihood=0.0)),
        "_energy": terms.energy,
        "_posterior": terms.log_q,
    }
    found = {"prevalence": float(np.mean(anomalous))}
    for name, values in parts.items():
        precision, recall, _ = metrics.precision_recall_curve(anomalous, values)
        # Of ties alone the trapezoid is (1 + prevalence) / 2, though they tell nothing.
        tells = np.ptp(values) > 0
        area = metrics.auc(recall, precision) if tells else found["prevalence"]
        found[f"auprc{name}"] = float(area)
        found[f"auroc{name}"] = float(metrics.roc_auc_score(anomalous, values))
    return found


def histogram(
    terms: Positive, anomalous: np.ndarray, weights: Weights, file: pathlib.Path
) -> None:
    """Draws the scores of both kinds of images, and their parts."""
    panels = {
        f"minus the score, w, v, u = {weights.likelihood:g}, {weights.prior:g}, "
        f"{weights.posterior:g}": weighed(terms, weights),
        "minus log p(x|z)": -terms.log_likelihood,
        "minus log p_beta(z)": -terms.log_prior,
        "E(z)": terms.energy,
        "log q(z|x)": terms.log_q,
    }
    panels = {  # without those of what the model does not have
        title: values for title, values in panels.items() if np.ptp(values) > 0
    }
    num = len(panels)
    figure, axes = plt.subplots(1, num, figsize=(4 * num, 3.2), layout="constrained")
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
