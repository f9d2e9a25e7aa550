"""Anomaly detection: how well a score tells a class that training has not seen.

Of the terms of `jebm.scores` at k = 0, with the likelihood weighed,

    s(x) = w log p(x|z) + log p_beta(z) - E(z),

the score of an image is

    log mean_A exp s(A x) - r mean_n s(x_n) - t log |eps - eps_1|^D

over the identity and `num_augmentations` small affine maps A, by which training may move and
bend its images (`datasets.affine`), and over the `num_neighbours` images x_n of
training whose D latents, as eps, are nearest to those of x. Minus the score is high for
anomalies; the held-out class is the positive one. The fields are those of eval.anomaly,
w is `likelihood_weight`, r `neighbours_weight` and t `knn_volume_weight`.

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

import dataclasses
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from sklearn import metrics
from sklearn.neighbors import NearestNeighbors
from tqdm import tqdm

import jebm
from experiments.data.augment import affine
from experiments.data.pixels import to_unit
from experiments.errors import ConfigError
from experiments.runtime.batching import map_batches
from jebm.chains import end_eps, example_keys, run_chains
from jebm.objectives import PosteriorTerms

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator


class Terms(NamedTuple):
    """The terms of score(0) that an image's score is made of, in nats."""

    # [1 + num_augmentations, N], of A x; the images as they are come first.
    moved: PosteriorTerms
    nearest: PosteriorTerms  # [N, num_neighbours], of x_n
    log_volume: np.ndarray  # [N, num_neighbours], log |eps - eps_n|^D


class Weights(NamedTuple):
    """w, r and t of the module's docstring."""

    likelihood: float = 1.0
    neighbours: float = 0.0
    volume: float = 0.0


def weights_of(options) -> Weights:
    """Those of `options`, config.eval."""
    return Weights(*(options.anomaly[f"{name}_weight"] for name in Weights._fields))


def scored(model, options):
    """The model with the posterior chain of `options`, config.eval.

    Raises:
      ValueError: if it would start at an encoder that the model does not have.
    """
    if options.anomaly.posterior_start is None:
        return model
    posterior = dataclasses.replace(
        model.chains.posterior, start=options.anomaly.posterior_start
    )
    chains = dataclasses.replace(model.chains, posterior=posterior)
    return dataclasses.replace(model, chains=chains)


def terms_of(key, model, params, images, training, options) -> Terms:
    """The terms of images, given those of training, both uint8 [N, H, W, C].

    Args:
      key: typed key, [].
      model: the model.
      params: its parameters.
      images: to be scored.
      training: among which the neighbours are; not read where there are to be none.
      options: `config.eval`.

    Raises:
      ConfigError: if there are fewer images of training than neighbours.
    """
    check_neighbours(options, training)
    model = scored(model, options)
    key, key_maps, key_training = jax.random.split(key, 3)
    moved = [_terms(key, model, params, images, options)]
    maps = range(options.anomaly.num_augmentations)
    for i in tqdm(maps, desc="moved and bent", leave=False, disable=None):
        shape = (len(images), 2, 3)
        drawn = np.asarray(jax.random.uniform(jax.random.fold_in(key_maps, i), shape))
        bent = affine(images[:], drawn)
        moved.append(_terms(key, model, params, bent, options))
    nearest = np.empty((len(images), 0), int)
    log_volume = np.empty((len(images), 0))
    known = jax.tree.map(lambda t: np.empty(0), moved[0])
    if num := options.anomaly.num_neighbours:
        known = _terms(key_training, model, params, training, options)
        there = _positions(key_training, model, params, training, options)
        here = _positions(key, model, params, images, options)
        nearest, log_volume = _nearest(there, here, num)
    return Terms(
        jax.tree.map(lambda *t: np.stack(t), *moved),
        jax.tree.map(lambda t: t[nearest], known),
        log_volume,
    )


def _nearest(there, here, num):
    """The `num` of `there` nearest to each of `here`, and the log volume to each."""
    if not (np.isfinite(there).all() and np.isfinite(here).all()):  # has diverged
        shape = (len(here), num)
        return np.zeros(shape, int), np.full(shape, np.nan)
    search = NearestNeighbors(n_neighbors=num, algorithm="brute").fit(there)
    distance, nearest = search.kneighbors(here)
    tiny = np.finfo(distance.dtype).tiny  # an image of training is its own nearest
    return nearest, here.shape[1] * np.log(np.maximum(distance, tiny))


def check_neighbours(options, training) -> None:
    """Refuses more neighbours than there are images of training."""
    if options.anomaly.num_neighbours > len(training):
        raise ConfigError(
            f"eval.anomaly.num_neighbours of {options.anomaly.num_neighbours} is more "
            f"than the {len(training)} images of training"
        )


def _terms(key, model, params, images, options):
    """Those of score(0) of each image, [N]."""

    def one_batch(key, x):
        num = options.num_posterior_samples
        return jebm.scores.score_terms(key, model, params, x, num_samples=num)

    return _of_images(key, one_batch, images, options)


def _positions(key, model, params, images, options):
    """eps of a posterior sample of each image, [N, D]."""

    def one_batch(key, x):
        eps = _posterior_eps(example_keys(key, jnp.arange(len(x))), model, params, x)
        return jnp.concatenate([e.reshape(len(x), -1) for e in eps], axis=1)

    return _of_images(key, one_batch, images, options)


@jax.jit
def _posterior_eps(keys, model, params, x):
    chain = model.chains.posterior
    end = run_chains(keys, model, params, chain, x=x)
    return end_eps(model, params, chain, end.latents, end.position)


def _of_images(key, one_batch, images, options):
    """`one_batch(key, x)` of all images, uint8 [N, H, W, C], x in [0, 1]."""

    def draw(key, indices):
        return one_batch(key, to_unit(jnp.asarray(images[indices])))

    return map_batches(key, draw, np.arange(len(images)), options.batch_size)


def log_density(terms: PosteriorTerms, likelihood: float) -> np.ndarray:
    """s of the module's docstring, nats, of the shape of the terms."""
    return likelihood * terms.log_likelihood + terms.log_prior - terms.energy


def score(terms: Terms, weights: Weights) -> np.ndarray:
    """The score of the module's docstring, [N], nats: low is anomalous.

    Example:
      >>> moved = PosteriorTerms(*np.log([[[1.0, 2.0], [3.0, 4.0]], np.ones((2, 2)),
      ...                            np.ones((2, 2)), np.ones((2, 2))]))
      >>> nearest = PosteriorTerms(*np.log([[[2.0], [1.0]], *np.ones((3, 2, 1))]))
      >>> terms = Terms(moved, nearest, np.zeros((2, 1)))
      >>> np.exp(score(terms, Weights(1.0, neighbours=1.0))).round(3)
      array([1., 3.])
    """
    moved = log_density(terms.moved, weights.likelihood)
    found = np.logaddexp.reduce(moved, axis=0) - np.log(len(moved))
    nearest = log_density(terms.nearest, weights.likelihood)
    if nearest.shape[1]:
        found = found - weights.neighbours * nearest.mean(axis=1)
        found = found - weights.volume * terms.log_volume[:, 0]
    return found


def detection(
    terms: Terms, anomalous: np.ndarray, weights: Weights
) -> dict[str, float]:
    """Areas under the precision-recall and the ROC curve, of the score and its parts.

    Args:
      terms: of `terms_of`.
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
      >>> moved = PosteriorTerms(nats, 0 * nats, 0 * nats, 0 * nats)
      >>> none = np.empty((4, 0))
      >>> terms = Terms(moved, PosteriorTerms(none, none, none, none), none)
      >>> found = detection(terms, np.array([True, True, False, False]), Weights(0.5))
      >>> found["auprc"], found["auroc"], found["auroc_prior"], found["prevalence"]
      (1.0, 1.0, 0.5, 0.5)
    """
    plain = _plain(terms)
    parts = {
        "": -score(terms, weights),
        "_absolute": -score(terms, Weights(weights.likelihood)),
        "_unweighed": -log_density(plain, 1.0),
        "_likelihood": -plain.log_likelihood,
        "_prior": -log_density(plain, 0.0),
        "_energy": plain.energy,
    }
    if terms.log_volume.shape[1]:
        parts["_distance"] = terms.log_volume[:, 0]
    found = {"prevalence": float(np.mean(anomalous))}
    for name, values in parts.items():
        if not np.isfinite(values).all():
            found[f"auprc{name}"] = found[f"auroc{name}"] = np.nan
            continue
        precision, recall, _ = metrics.precision_recall_curve(anomalous, values)
        # Of ties alone the trapezoid is (1 + prevalence) / 2, though they tell nothing.
        tells = np.ptp(values) > 0
        area = metrics.auc(recall, precision) if tells else found["prevalence"]
        found[f"auprc{name}"] = float(area)
        found[f"auroc{name}"] = float(metrics.roc_auc_score(anomalous, values))
    return found


def _plain(terms):
    """Those of the images as they are, [N]."""
    return jax.tree.map(lambda t: t[0], terms.moved)


def histogram(
    terms: Terms, anomalous: np.ndarray, weights: Weights, file: pathlib.Path
) -> None:
    """Draws the scores of both kinds of images, but for the .4% farthest, and parts."""
    plain = _plain(terms)
    panels = {
        "minus the score": -score(terms, weights),
        "minus log p(x|z)": -plain.log_likelihood,
        "minus log p_beta(z)": -plain.log_prior,
        "E(z)": plain.energy,
    }
    panels = {  # without those of what the model does not have
        title: values for title, values in panels.items() if np.ptp(values) > 0
    }
    num = len(panels)
    figure = plt.figure(figsize=(4 * max(num, 1), 3.2), layout="constrained")
    if not panels:
        figure.suptitle("no score is finite")
    for i, (title, values) in enumerate(panels.items()):
        axis = figure.add_subplot(1, num, i + 1)
        bins = np.linspace(*np.percentile(values, [0.2, 99.8]), 60)
        for kind, colour, name in (
            (~anomalous, "#0072B2", "classes of training"),
            (anomalous, "#E69F00", "held-out class"),
        ):
            axis.hist(
                values[kind], bins, density=True, alpha=0.6, color=colour, label=name
            )
        axis.set(title=title, xlabel="nats", yticks=[])
        axis.xaxis.set_major_locator(MaxNLocator(4))
        if i == 0:
            axis.legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)
