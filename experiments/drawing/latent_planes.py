"""Each layer's latent plane along the Langevin transition.

Prior samples move from their start to the tilted prior, over samples of the aggregate
posterior of training images; 2-D layers are drawn as they are, with the layer's energy
as contours, others on the posterior's first two principal axes.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import jebm
from experiments.data.pixels import to_unit
from experiments.drawing.chains import trace_prior
from experiments.drawing.common import (
    POSTERIOR,
    PRIOR,
    at,
    show_grid,
    spaced,
    subplots,
)
from experiments.runs import Run
from experiments.runtime.batching import map_batches
from jebm.chains import decode
from jebm.metrics import energy_distance

_NUM_POINTS = 4000  # of prior and of posterior, that are compared
_FEWEST = 100  # of few images some are taken more than once, with other noise
_NUM_SHOWN = 2000  # of them, in a plane
_NUM_DECODED = 16
_NUM_TIMES = 6  # columns, at most
_RESOLUTION = 80  # of the contours, along each axis
_NUM_LEVELS = 8


class Contours(NamedTuple):
    """The energy of a layer on a grid of its plane.

    Attributes:
      x, y: of the points, [80, 80].
      energies: at them, in nats, [80, 80].
      levels: that are drawn, rising, [8].
    """

    x: np.ndarray
    y: np.ndarray
    energies: np.ndarray
    levels: np.ndarray


class Plane(NamedTuple):
    """The samples of a layer, on the plane that is drawn.

    Attributes:
      posterior: samples of the aggregate posterior, [N, 2].
      prior: samples along the transition, [T, N, 2].
      low, high: corners of the plane, [2].
      contours: of the layer's energy; None where it has none of its own, or not two
        dimensions.
      distances: of `distances`, of all dimensions.
    """

    posterior: np.ndarray
    prior: np.ndarray
    low: np.ndarray
    high: np.ndarray
    contours: Contours | None
    distances: dict[str, float]


class LatentPlanes(NamedTuple):
    """Planes of all layers.

    Attributes:
      times: steps of the transition that are shown, T of them.
      planes: of the layers, bottom to top.
      decoded: images of some of the samples, in [0, 1], [T, 16, H, W, C].
    """

    times: list[int]
    planes: tuple[Plane, ...]
    decoded: np.ndarray


def compute(key: jax.Array, run: Run) -> LatentPlanes:
    """Draws prior samples along the chain, and posterior samples of training images."""
    key_prior, key_posterior, key_untilted = jax.random.split(key, 3)
    model, params = run.model, run.params
    num = min(_NUM_POINTS, max(_FEWEST, len(run.training)))
    posterior = _sample_posterior(key_posterior, run, num)
    # In z-space the untilted start is not the hierarchy, so both are drawn.
    untilted = jebm.sample(key_untilted, model, params, num, prior="gaussian").latents
    prior = trace_prior(key_prior, run, model.chains.prior, num, every=1)
    times = spaced(model.chains.prior.num_steps, _NUM_TIMES)
    planes = [
        _compute_plane(run, i, times, *(np.asarray(z) for z in samples))
        for i, samples in enumerate(zip(posterior, prior, untilted, strict=True))
    ]
    decoded = [decode(model, params, at(prior, t, _NUM_DECODED)) for t in times]
    return LatentPlanes(times, tuple(planes), np.stack(decoded))


def numbers(latent_planes: LatentPlanes) -> dict[str, dict[str, float]]:
    """Returns the `distances` of each layer: "z_1", ..."""
    return {
        f"z_{i}": plane.distances for i, plane in enumerate(latent_planes.planes, 1)
    }


def draw(latent_planes: LatentPlanes) -> Figure:
    """Draws a row per layer, top first, and a column per time, above decoded images."""
    times, planes = latent_planes.times, latent_planes.planes
    rows, columns = len(planes) + 1, len(times)
    figure, axes = subplots(rows, columns, (1.6 * columns, 1.7 * rows + 0.5))
    for row, i in enumerate(reversed(range(len(planes)))):
        _draw_plane(axes[row], planes[i])
        d = planes[i].distances
        axes[row, 0].set_ylabel(
            f"z_{i + 1}\nD tilted {d['tilted']:.2f}\nD untilted {d['untilted']:.2f}",
            fontsize=9,
        )
    for axis, images in zip(axes[-1], latent_planes.decoded, strict=True):
        show_grid(axis, images)
    axes[-1, 0].set_ylabel("decoded", fontsize=9)
    for axis, t in zip(axes[0], times, strict=True):
        axis.set_title(f"step {t}", fontsize=10)
    figure.suptitle(
        "Langevin transition of the prior (blue) over the aggregate posterior "
        "(orange)\ncontours: energy of a 2-D layer; other layers are drawn on the "
        "posterior's principal axes\nD: energy distance to the posterior",
        fontsize=10,
    )
    return figure


def principal_plane(points: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the map of [..., D] to the plane that is drawn, [..., 2].

    Beyond two dimensions it is that of the first principal axes of `points` [N, D]; one
    dimension is drawn on a line.
    """
    if points.shape[1] == 2:
        return lambda z: z
    if points.shape[1] == 1:
        return lambda z: np.concatenate([z, np.zeros_like(z)], axis=-1)
    centre = points.mean(axis=0)
    axes = np.linalg.svd(points - centre, full_matrices=False)[2][:2]
    return lambda z: (z - centre) @ axes.T


def distances(
    posterior: np.ndarray, tilted: np.ndarray, untilted: np.ndarray
) -> dict[str, float]:
    """Returns energy distances to half of the posterior, of samples [N, *shape] each.

    They are those of the tilted prior, of the untilted prior, and of the posterior's
    other half: the floor. "ratio" is the first over the second.
    """
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


def _sample_posterior(key, run, num):
    images = run.training

    def sample(key, indices):
        x = to_unit(jnp.asarray(images[indices % len(images)]))
        return jebm.posterior_sample(key, run.model, run.params, x)

    return map_batches(key, sample, np.arange(num), run.experiment.eval.batch_size)


def _compute_plane(run, i, times, posterior, prior, untilted) -> Plane:
    """Maps samples of layer i, [N, *shape], the prior's [T, N, *shape], to a plane."""
    flat = posterior.reshape(len(posterior), -1)
    to_plane = principal_plane(flat)
    points = to_plane(flat)
    low, high = np.percentile(points, [0.5, 99.5], axis=0)
    margin = 0.1 * (high - low)
    low, high = np.minimum(low - margin, -3), np.maximum(high + margin, 3)
    contours = None
    if flat.shape[1] == 2 and hasattr(run.model.energy, "per_layer"):
        contours = _compute_contours(run, i, points, low, high)
    moving = [to_plane(prior[t].reshape(len(flat), -1)[:_NUM_SHOWN]) for t in times]
    return Plane(
        points[:_NUM_SHOWN], np.stack(moving), low, high, contours,
        distances(posterior, prior[-1], untilted),
    )  # fmt: skip


def _compute_contours(run, i, points, low, high) -> Contours:
    """Evaluates E_i on the plane, with levels up to that of the rarer of `points`."""

    def energy(points):
        latents = [
            jnp.zeros((len(points), *shape))
            for shape in run.model.backbone.latent_shapes
        ]
        latents[i] = jnp.asarray(points, jnp.float32)
        energies = run.model.energy.apply(
            run.params.energy, tuple(latents), method="per_layer"
        )
        return np.asarray(energies[i])

    x, y = np.meshgrid(*np.linspace(low, high, _RESOLUTION).T)
    energies = energy(np.stack([x.ravel(), y.ravel()], axis=-1))
    lowest = energies.min()
    highest = max(np.percentile(energy(points), 98), lowest + 1e-6)
    levels = np.linspace(lowest, highest, _NUM_LEVELS)
    return Contours(x, y, energies.reshape(x.shape), levels)


def _draw_plane(axes: np.ndarray, plane):
    for axis, moving in zip(axes, plane.prior, strict=True):
        for cloud, colour in ((plane.posterior, POSTERIOR), (moving, PRIOR)):
            axis.scatter(*cloud.T, s=3, color=colour, alpha=0.4, linewidths=0)
        if plane.contours is not None:
            _draw_contours(axis, plane.contours)
        (left, bottom), (right, top) = plane.low, plane.high
        axis.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])


def _draw_contours(axis: Axes, contours):
    axis.contour(
        contours.x, contours.y, contours.energies, levels=contours.levels,
        colors="black", linewidths=0.6, alpha=0.7, linestyles="solid",
    )  # fmt: skip
