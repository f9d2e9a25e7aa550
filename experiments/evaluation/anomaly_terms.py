"""The terms of the density of a run's held-out images, and of their neighbours."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.neighbors import NearestNeighbors
from tqdm import tqdm

import jebm
from experiments.data.augment import affine
from experiments.data.pixels import draw_binary, to_unit
from experiments.evaluation.anomaly_score import ImageTerms, Terms
from experiments.runs import Run
from experiments.runtime.batching import map_batches
from jebm.chains import end_eps, example_keys, run_chains


def terms_of(
    key: jax.Array, run: Run, num_augmentations: int, num_neighbours: int
) -> Terms:
    """Returns the terms of the held-out images, given those of training.

    Args:
      key: typed key, [].
      run: the run; those of training are not read where there are to be no neighbours.
      num_augmentations: of affine maps of each image.
      num_neighbours: at most the number of images of training.
    """
    images = run.heldout
    key, key_maps, key_training = jax.random.split(key, 3)
    moved = [_terms(key, run, images)]
    maps = range(num_augmentations)
    for i in tqdm(maps, desc="moved and bent", leave=False, disable=None):
        shape = (len(images), 2, 3)
        drawn = np.asarray(jax.random.uniform(jax.random.fold_in(key_maps, i), shape))
        bent = affine(images[:], drawn)
        if run.experiment.data.binarize:  # between the pixels it is grey
            bent = draw_binary(np.random.default_rng(i), bent)
        moved.append(_terms(key, run, bent))
    nearest = np.empty((len(images), 0), int)
    knn_log_volume = np.empty((len(images), 0))
    known = jax.tree.map(lambda t: np.empty(0), moved[0])
    if num_neighbours:
        known = _terms(key_training, run, run.training)
        there = _positions(key_training, run, run.training)
        here = _positions(key, run, images)
        nearest, knn_log_volume = _nearest(there, here, num_neighbours)
    return Terms(
        jax.tree.map(lambda *t: np.stack(t), *moved),
        jax.tree.map(lambda t: t[nearest], known),
        knn_log_volume,
    )


def with_start(run: Run, start: str | None) -> Run:
    """Returns the run with its posterior chain starting there; None: as it is.

    Raises:
      ValueError: if it would start at an encoder that the model does not have.
    """
    if start is None:
        return run
    chains = run.model.chains
    assert chains.posterior is not None
    posterior = dataclasses.replace(chains.posterior, start=start)
    chains = dataclasses.replace(chains, posterior=posterior)
    model = dataclasses.replace(run.model, chains=chains)
    return dataclasses.replace(run, model=model)


def _terms(key, run, images):
    """Returns the terms of score(0) of each image, [N]."""
    run.demand_density()
    num = run.experiment.eval.num_posterior_samples

    def one_batch(key, x):
        terms = jebm.scores.score_terms(key, run.model, run.params, x, num_samples=num)
        return ImageTerms(terms.log_likelihood, terms.log_prior, terms.energy)

    return _of_images(key, one_batch, images, run.experiment.eval.batch_size)


def _positions(key, run, images):
    """Returns eps of a posterior sample of each image, [N, D]."""

    def one_batch(key, x):
        keys = example_keys(key, jnp.arange(len(x)))
        eps = _posterior_eps(keys, run.model, run.params, x)
        return jnp.concatenate([e.reshape(len(x), -1) for e in eps], axis=1)

    return _of_images(key, one_batch, images, run.experiment.eval.batch_size)


@jax.jit
def _posterior_eps(keys, model, params, x):
    chain = model.chains.posterior
    end = run_chains(keys, model, params, chain, x=x)
    return end_eps(model, params, chain, end.latents, end.position)


def _of_images(key, one_batch, images, batch_size):
    """Applies `one_batch(key, x)` to all images, uint8 [N, H, W, C], x in [0, 1]."""

    def draw(key, indices):
        return one_batch(key, to_unit(jnp.asarray(images[indices])))

    return map_batches(key, draw, np.arange(len(images)), batch_size)


def _nearest(there, here, num):
    """Finds the `num` of `there` nearest each of `here`, and the log volume to each."""
    if not (np.isfinite(there).all() and np.isfinite(here).all()):  # has diverged
        shape = (len(here), num)
        return np.zeros(shape, int), np.full(shape, np.nan)
    search = NearestNeighbors(n_neighbors=num, algorithm="brute").fit(there)
    distance, nearest = search.kneighbors(here)
    tiny = np.finfo(distance.dtype).tiny  # an image of training is its own nearest
    return nearest, here.shape[1] * np.log(np.maximum(distance, tiny))
