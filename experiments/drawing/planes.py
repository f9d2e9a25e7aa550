"""Latent planes."""

import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import jebm
from experiments import pictures
from experiments.data.pixels import to_unit
from experiments.drawing.common import at, save, spaced
from experiments.rundir.curves import POSTERIOR, PRIOR
from experiments.runtime.batching import map_batches
from experiments.runtime.files import write_json
from jebm.chains import decode, example_keys, trace_chains
from jebm.metrics import energy_distance

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_NUM_POINTS = 4000  # of prior and of posterior in a latent plane


def latent_planes(
    key, model, params, images, folder: pathlib.Path, batch_size: int
) -> pathlib.Path:
    """Draws each layer's latent plane along the Langevin transition.

    Prior samples move from their start to the tilted prior, over samples of the
    aggregate posterior of training images; 2-D layers are drawn as they are, with the
    layer's energy as contours, others on the posterior's first two principal axes.
    Writes beside the picture, per layer, the energy distances to the posterior of the
    tilted prior, of the untilted prior, and of the posterior itself: the floor.
    """
    num = min(_NUM_POINTS, len(images))
    key_prior, key_posterior, key_untilted = jax.random.split(key, 3)
    index = jnp.arange(num)

    def draw(key, indices):
        x = to_unit(jnp.asarray(images[indices]))
        return jebm.posterior_sample(key, model, params, x)

    posterior = map_batches(key_posterior, draw, np.arange(num), batch_size)
    untilted = jebm.sample(key_untilted, model, params, num, prior="gaussian").latents
    # In z-space the untilted start is not the hierarchy, so both are drawn.
    prior = jax.jit(
        lambda keys, params: trace_chains(
            keys, model, params, model.chains.prior, every=1
        )
    )(example_keys(key_prior, index), params)

    distances = {
        f"z_{i + 1}": _distances(
            np.asarray(posterior[i]), np.asarray(prior[i][-1]), np.asarray(untilted[i])
        )
        for i in range(len(posterior))
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "latent_planes.json", distances)

    times = spaced(model.chains.prior.num_steps, 6)
    layers = len(posterior)
    figure, axes = plt.subplots(
        layers + 1, len(times), figsize=(1.6 * len(times), 1.7 * (layers + 1) + 0.5),
        layout="constrained",
    )  # fmt: skip
    for row, i in enumerate(reversed(range(layers))):
        _draw_plane(axes[row], i, times, posterior, prior, model, params)
        d = distances[f"z_{i + 1}"]
        axes[row, 0].set_ylabel(
            f"z_{i + 1}\nD tilted {d['tilted']:.2f}\nD untilted {d['untilted']:.2f}",
            fontsize=9,
        )
    for axis, t in zip(axes[-1], times, strict=True):
        axis.imshow(
            np.asarray(pictures.grid(decode(model, params, at(prior, t, 16)))),
            cmap="gray", vmin=0, vmax=255,
        )  # fmt: skip
        axis.set(xticks=[], yticks=[])
    axes[-1, 0].set_ylabel("decoded", fontsize=9)
    for axis, t in zip(axes[0], times, strict=True):
        axis.set_title(f"step {t}", fontsize=10)
    figure.suptitle(
        "Langevin transition of the prior (blue) over the aggregate posterior "
        "(orange)\ncontours: energy of a 2-D layer; other layers are drawn on the "
        "posterior's principal axes\nD: energy distance to the posterior",
        fontsize=10,
    )
    return save(figure, folder / "latent_planes.png")


def _draw_plane(axes, i, times, posterior, prior, model, params):
    flat = np.asarray(posterior[i]).reshape(len(posterior[i]), -1)
    plane = _plane(flat)
    points = plane(flat)
    low, high = np.percentile(points, [0.5, 99.5], axis=0)
    margin = 0.1 * (high - low)
    low, high = np.minimum(low - margin, -3), np.maximum(high + margin, 3)
    for axis, t in zip(axes, times, strict=True):
        moving = plane(np.asarray(prior[i][t]).reshape(len(prior[i][t]), -1))
        for cloud, colour in ((points, POSTERIOR), (moving, PRIOR)):
            axis.scatter(*cloud[:2000].T, s=3, color=colour, alpha=0.4, linewidths=0)
        if flat.shape[1] == 2 and hasattr(model.energy, "per_layer"):
            _contours(axis, i, points, low, high, model, params)
        axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[])


def _contours(axis, i, points, low, high, model, params):
    """Level lines of E_i, from its minimum to its value at the rarer of `points`."""

    def energy(points):
        latents = tuple(
            jnp.zeros((len(points), *shape)) for shape in model.backbone.latent_shapes
        )
        latents = (*latents[:i], jnp.asarray(points, jnp.float32), *latents[i + 1 :])
        return np.asarray(
            model.energy.apply(params.energy, latents, method="per_layer")[i]
        )

    grid = np.meshgrid(*np.linspace(low, high, 80).T)
    values = energy(np.stack([g.ravel() for g in grid], axis=-1))
    top = max(np.percentile(energy(points), 98), values.min() + 1e-6)
    axis.contour(
        *grid, values.reshape(grid[0].shape), levels=np.linspace(values.min(), top, 8),
        colors="black", linewidths=0.6, alpha=0.7, linestyles="solid",
    )  # fmt: skip


def _plane(points):
    """The map to the plane that is drawn: principal axes beyond two dimensions."""
    if points.shape[1] == 2:
        return lambda z: z
    if points.shape[1] == 1:
        return lambda z: np.concatenate([z, np.zeros_like(z)], axis=1)
    centre = points.mean(axis=0)
    axes = np.linalg.svd(points - centre, full_matrices=False)[2][:2]
    return lambda z: (z - centre) @ axes.T


def _distances(posterior, tilted, untilted):
    posterior, tilted, untilted = (
        z.reshape(len(z), -1) for z in (posterior, tilted, untilted)
    )
    # Each with half of the points: the distance of finite samples grows as they shrink,
    # and the posterior against itself is to be the floor of the other two.
    half = len(posterior) // 2

    def distance(points):
        sets = points[:half], posterior[half:]
        if not all(np.isfinite(z).all() for z in sets):  # a chain has diverged
            return np.nan
        return energy_distance(*sets)

    values = {
        "tilted": distance(tilted),
        "untilted": distance(untilted),
        "posterior": distance(posterior),
    }
    return values | {"ratio": values["tilted"] / values["untilted"]}
