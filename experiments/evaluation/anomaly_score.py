"""The score of an anomaly, and how well it tells a class from others: pure functions.

Of the terms of `jebm.scores` at k = 0, with the likelihood weighed,

    s(x) = w log p(x|z) + log p_beta(z) - E(z),

the score of an image is

    log mean_A exp s(A x) - r mean_n s(x_n) - t log |eps - eps_1|^D

over the identity and `num_augmentations` small affine maps A, by which training may
move and bend its images (`augment.affine`), and over the `num_neighbours` images x_n
of training whose D latents, as eps, are nearest to those of x. Minus the score is high
for anomalies; the held-out class is the positive one. The fields are those of
eval.anomaly, w is `likelihood_weight`, r `neighbours_weight` and t `knn_volume_weight`.

A generator is trained sharp, with a small sigma_x, so that its latents hold what tells
one image from another; at the weight of training, w = 1, the error of the pixels then
drowns what the prior says of them. A Gaussian likelihood of weight w is that of
sigma_x / sqrt(w). The mean over maps is the density of a shape, wherever it lies and
however it leans, where that of one image is also of the pose it happens to have.
Classes have densities of their own, though, by the room that they take; the neighbours
tell whether an image is less likely than what is most like it, as the local outlier
factor does (Breunig et al., SIGMOD 2000). The last term is that of another estimate of
the density of eps, by the volume in which one image of training lies (Loftsgaarden and
Quesenberry, 1965): it knows no more than these images, but that also where an energy
has never been.
"""

from typing import NamedTuple

import jax
import numpy as np
from sklearn import metrics


class ImageTerms(NamedTuple):
    """What is used of `jebm.objectives.PosteriorTerms`, on the host, in nats."""

    log_likelihood: np.ndarray  # log p(x|z)
    log_prior: np.ndarray  # log p_beta(z)
    energy: np.ndarray  # E(z)


class Terms(NamedTuple):
    """The terms of score(0) that an image's score is made of, in nats."""

    # [1 + num_augmentations, N], of A x; the images as they are come first.
    moved: ImageTerms
    nearest: ImageTerms  # [N, num_neighbours], of x_n
    knn_log_volume: np.ndarray  # [N, num_neighbours], log |eps - eps_n|^D


class Weights(NamedTuple):
    """w, r and t of the module's docstring."""

    likelihood: float = 1.0
    neighbours: float = 0.0
    volume: float = 0.0


def log_density(terms: ImageTerms, likelihood: float) -> np.ndarray:
    """Returns s of the module's docstring, nats, of the shape of the terms."""
    return likelihood * terms.log_likelihood + terms.log_prior - terms.energy


def score(terms: Terms, weights: Weights) -> np.ndarray:
    """Returns the score of the module's docstring, [N], nats: low is anomalous.

    Example:
      >>> likelihoods = [[1.0, 2.0], [3.0, 4.0]]
      >>> moved = ImageTerms(*np.log([likelihoods, *np.ones((2, 2, 2))]))
      >>> nearest = ImageTerms(*np.log([[[2.0], [1.0]], *np.ones((2, 2, 1))]))
      >>> terms = Terms(moved, nearest, np.zeros((2, 1)))
      >>> np.exp(score(terms, Weights(1.0, neighbours=1.0))).round(3)
      array([1., 3.])
    """
    moved = log_density(terms.moved, weights.likelihood)
    total = np.logaddexp.reduce(moved, axis=0) - np.log(len(moved))
    nearest = log_density(terms.nearest, weights.likelihood)
    if nearest.shape[1]:
        total = total - weights.neighbours * nearest.mean(axis=1)
        total = total - weights.volume * terms.knn_log_volume[:, 0]
    return total


def detection(
    terms: Terms, anomalous: np.ndarray, weights: Weights
) -> dict[str, float]:
    """Measures areas under two curves, precision-recall and ROC, of score and parts.

    Args:
      terms: of `anomaly_terms.terms_of`.
      anomalous: whether each image is of the held-out class, bool [N].
      weights: of the score.

    Returns:
      auprc (area under the curve by trapezoids, as in the literature on this split) and
      auroc of the score; "_absolute", without neighbours and volume; "_unweighed", of
      score(0) itself, without maps as well; "_likelihood", "_prior" and "_energy", of
      its log p(x|z), log p_beta(z) - E(z) and -E(z) alone; "_distance", where there are
      neighbours, of the distance to the nearest; and the prevalence of anomalies, the
      auprc of chance. Of values that are not finite they are nan.

    Example:
      >>> nats = np.array([[0.0, 1.0, 2.0, 3.0]])
      >>> moved = ImageTerms(nats, 0 * nats, 0 * nats)
      >>> none = np.empty((4, 0))
      >>> terms = Terms(moved, ImageTerms(none, none, none), none)
      >>> areas = detection(terms, np.array([True, True, False, False]), Weights(0.5))
      >>> areas["auprc"], areas["auroc"], areas["auroc_prior"], areas["prevalence"]
      (1.0, 1.0, 0.5, 0.5)
    """
    numbers = {"prevalence": float(np.mean(anomalous))}
    for name, values in _parts(terms, weights).items():
        numbers[f"auprc{name}"], numbers[f"auroc{name}"] = areas(anomalous, values)
    return numbers


def _parts(terms, weights):
    """Returns minus the score and its parts, by the ends of their names, [N] each."""
    plain = as_they_are(terms)
    parts = {
        "": -score(terms, weights),
        "_absolute": -score(terms, Weights(weights.likelihood)),
        "_unweighed": -log_density(plain, 1.0),
        "_likelihood": -plain.log_likelihood,
        "_prior": -log_density(plain, 0.0),
        "_energy": plain.energy,
    }
    if not plain.energy.any():  # a Gaussian prior has none
        del parts["_energy"]
    if terms.knn_log_volume.shape[1]:
        parts["_distance"] = terms.knn_log_volume[:, 0]
    return parts


def areas(anomalous: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Returns AUPRC and AUROC of values [N], high for anomalies; see `detection`."""
    if not np.isfinite(values).all():
        return np.nan, np.nan
    precision, recall, _ = metrics.precision_recall_curve(anomalous, values)
    # Of ties alone the trapezoid is (1 + prevalence) / 2, though they tell nothing.
    tells = np.ptp(values) > 0
    area = metrics.auc(recall, precision) if tells else np.mean(anomalous)
    return float(area), float(metrics.roc_auc_score(anomalous, values))


def as_they_are(terms: Terms) -> ImageTerms:
    """Returns the terms of the images as they are, [N]."""
    return jax.tree.map(lambda t: t[0], terms.moved)
