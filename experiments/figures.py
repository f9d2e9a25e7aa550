"""Figures of a trained run: training curves, chains, latent planes, hierarchy."""

import dataclasses
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import jebm
from experiments import (
    classifier,
    curves,
    datasets,
    pictures,
    probes,
    report,
    workdir,
)
from experiments.curves import POSTERIOR, PRIOR
from experiments.learning import Role
from experiments.sample import energies_along, in_batches, open_run
from jebm.chains import decode, example_keys, trace_chains
from jebm.metrics import energy_distance
from jebm.objectives import posterior_terms

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_NUM_POINTS = 4000  # of prior and of posterior in a latent plane
_NUM_CHAINS = 8  # rows of the transition
_LONG_RUN = 2500  # steps
_HIERARCHICAL = (64, 16)  # z_{>k} kept, draws given each


def figures(config, path: pathlib.Path) -> None:
    """Draws all figures of the run in `path` and its report."""
    model, params, _, splits = open_run(config, path)
    folder = path / "figures" / workdir.variant(path, config)
    key = jax.random.fold_in(jax.random.key(config.seed), Role.FIGURES)
    images = splits["train"].images
    drawn = []
    if lines := workdir.read_metrics(path):
        drawn.append(training_curves(lines, path / "figures"))
    batch_size = config.eval.batch_size
    if len(np.unique(splits["train"].labels)) > 1:
        drawn.append(
            probes.write_probes(
                key, model, params, splits, folder / "probes.json", batch_size
            )
        )
    heldout = splits["test"].images
    if model.chains.posterior.num_steps:
        drawn.append(posterior_transition(key, model, params, heldout, folder))
    if len(model.backbone.latent_shapes) > 1:
        drawn.append(by_layer(key, model, params, heldout, folder))
    if model.energy is not None and model.chains.prior.num_steps:
        drawn.append(transition(key, model, params, folder))
        drawn.append(long_run(key, model, params, folder))
        if len(model.backbone.latent_shapes) > 1:
            labels = None
            if config.data.name in classifier.known():
                labels = classifier.labels(config.data.name)
            drawn.append(hierarchical(key, model, params, folder, labels))
        drawn.append(latent_planes(key, model, params, images, folder, batch_size))
    pictures.mark(config, drawn)
    for file in drawn:
        print(f"wrote {file}")
    report.write(path)


def training_curves(lines: list[dict], folder: pathlib.Path) -> pathlib.Path:
    """Draws the metrics over training steps."""
    panels = curves.panels(lines)
    rows, columns = -(-len(panels) // 3), min(3, len(panels))
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.2 * columns, 2.4 * rows), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes.flat, panels, strict=False):
        for step in curves.rescues(lines):
            axis.axvline(step, color="crimson", linewidth=1, linestyle=":")
        if panel.limit is not None:
            axis.axhline(panel.limit, color="crimson", linewidth=1, linestyle="--")
        for name, colour in zip(panel.names, (POSTERIOR, PRIOR), strict=False):
            if points := curves.points(lines, name):
                label = curves.LABELS.get(name)
                axis.plot(*np.transpose(points), color=colour, label=label)
        axis.set(title=panel.title, xlabel="training step", ylabel=panel.unit)
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.3)
        if len(panel.names) > 1 and axis.lines:
            axis.legend(fontsize=8)
    return _save(figure, folder / "training.png")


def transition(key, model, params, folder: pathlib.Path) -> pathlib.Path:
    """Decodes prior chains along the way, above the energy profile of 256 chains."""
    chain = model.chains.prior
    traced, energies = _trace_prior(key, model, params, chain, every=1)
    return _draw_chains(
        folder / "transition.png",
        "Langevin transition of the tilted prior",
        [decode(model, params, _at(traced, t, _NUM_CHAINS)) for t in _times(energies)],
        energies,
        every=1,
    )


def posterior_transition(
    key, model, params, images, folder: pathlib.Path
) -> pathlib.Path:
    """Decodes posterior chains along the way; the last column is the image itself."""
    x = datasets.to_unit(jnp.asarray(images[np.arange(256) % len(images)]))
    keys = example_keys(key, jnp.arange(256))
    traced, values = jax.jit(_trace_posterior, static_argnums=1)(keys, model, params, x)
    shown = [decode(model, params, _at(traced, t, _NUM_CHAINS)) for t in _times(values)]
    return _draw_chains(
        folder / "posterior_transition.png",
        "Langevin transition of the posterior, and the image",
        [*shown, x[:_NUM_CHAINS]],
        values,
        every=1,
        label="log p(x | z) (nats)",
    )


def long_run(key, model, params, folder: pathlib.Path) -> pathlib.Path:
    """Prior chains far beyond the length of training: do images and energy hold?

    Writes beside the picture the energy over the last 500 steps and the 500 before, in
    nats, means over 256 chains with the standard error of their difference, and that
    difference in standard deviations of the energy.
    """
    chain = dataclasses.replace(model.chains.prior, num_steps=_LONG_RUN)
    every = 10
    traced, energies = _trace_prior(key, model, params, chain, every)
    found = plateau(energies, 500 // every)
    folder.mkdir(parents=True, exist_ok=True)
    workdir.write_json(folder / "long_run.json", found)
    return _draw_chains(
        folder / "long_run.png",
        f"{_LONG_RUN} steps of the tilted prior's chain\nenergy of the last 500 minus "
        f"that of the 500 before: {found['difference_in_sd']:+.3f} standard deviations",
        [decode(model, params, _at(traced, t, _NUM_CHAINS)) for t in _times(energies)],
        energies,
        every=every,
        trained=model.chains.prior.num_steps,
    )


def plateau(energies: np.ndarray, window: int) -> dict[str, float]:
    """Compares the last `window` of energies [T, chains] with the `window` before.

    Example:
      >>> found = plateau(np.array([[9.0, 9.0], [1.0, 3.0], [2.0, 6.0]]), window=1)
      >>> [found[k] for k in ("before_nats", "last_nats", "difference_in_sd")]
      [2.0, 4.0, 1.0]
    """
    last, before = energies[-window:], energies[-2 * window : -window]
    difference = last.mean(axis=0) - before.mean(axis=0)  # of each chain
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return {
        "before_nats": float(before.mean()),
        "last_nats": float(last.mean()),
        "standard_error_nats": float(error),
        "difference_in_sd": float(difference.mean() / last.std()),
    }


def _trace_prior(key, model, params, chain, every):
    keys = example_keys(key, jnp.arange(256))
    traced = jax.jit(
        lambda keys, params: trace_chains(keys, model, params, chain, every=every)
    )(keys, params)
    energies = energies_along(model, params, traced)
    return traced, np.asarray(energies)


def _trace_posterior(keys, model, params, x):
    traced = trace_chains(keys, model, params, model.chains.posterior, every=1, x=x)
    log_p = jax.lax.map(
        lambda z: posterior_terms(model, params, x, z).log_likelihood, traced
    )
    return traced, log_p


def _draw_chains(file, title, shown, values, *, every, label="E (nats)", trained=None):
    """Rows of images, one per chain, above the profile of `values` [T, chains]."""
    times = [t * every for t in _times(values)]
    rows, columns = len(shown[0]), len(shown)
    images = np.stack(shown, axis=1).reshape(rows * columns, *shown[0].shape[1:])
    picture = np.asarray(pictures.grid(images, columns=columns))
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(8, 7.5), height_ratios=[3, 1], layout="constrained"
    )
    top.imshow(picture, cmap="gray", vmin=0, vmax=255)
    width = picture.shape[1] / columns
    labels = [str(t) for t in times] + ["x"] * (columns - len(times))
    top.set_xticks([width * (i + 0.5) for i in range(columns)], labels)
    top.set_yticks([])
    top.set(title=title, xlabel="Langevin step")
    mean, spread = values.mean(axis=1), values.std(axis=1)
    steps = np.arange(len(values)) * every
    bottom.plot(steps, mean, color=PRIOR)
    bottom.fill_between(steps, mean - spread, mean + spread, color=PRIOR, alpha=0.2)
    if trained is not None:
        bottom.axvline(trained, color="black", linewidth=1, linestyle=":")
        bottom.annotate(" as sampled", (trained, bottom.get_ylim()[1]), va="top")
    bottom.set(xlabel="Langevin step", ylabel=label, xlim=(0, steps[-1]))
    bottom.set_title(
        f"{values.shape[1]} chains: mean and standard deviation", fontsize=10
    )
    bottom.grid(alpha=0.3)
    return _save(figure, file)


def hierarchical(
    key, model, params, folder: pathlib.Path, labels: Callable | None
) -> pathlib.Path:
    """Keeps z_{>k} and draws the layers below anew: what does each layer hold?

    For each k below L, tilted prior above, Gaussian prior below; a row shares its
    z_{>k}. Where `labels` (images -> classes) tells classes, writes beside the picture
    how often two images of one row agree in theirs, and how often any two do.
    """
    layers = len(model.backbone.latent_shapes)
    priors, kept_from = ("ebm", "gaussian"), _cuts(layers)
    figure, axes = plt.subplots(
        2, len(kept_from), figsize=(5.2 * len(kept_from), 10.8), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    found = {}
    rows, columns = _HIERARCHICAL

    def repeat(z):
        return jnp.repeat(z, columns, axis=0)

    for column, k in enumerate(kept_from):
        for row, prior in enumerate(priors):
            key_above, key_below = jax.random.split(
                jax.random.fold_in(key, 2 * k + row)
            )
            kept = jebm.sample(key_above, model, params, rows, prior=prior).latents[k:]
            kept = jax.tree.map(repeat, kept)
            x = jebm.sample(
                key_below, model, params, rows * columns, prior=prior, above=kept
            ).x
            told = ""
            if labels is not None:
                agreement = agreement_of(
                    labels(np.nan_to_num(x)).reshape(rows, columns)
                )
                found.setdefault(f"k={k}", {})[prior] = agreement
                told = f"\nlabels agree: {agreement['in_rows']:.2f} in a row, "
                told += f"{agreement['overall']:.2f} overall"
            shown = x.reshape(rows, columns, *model.image_shape)[:8, :8]
            picture = pictures.grid(shown.reshape(64, *model.image_shape), columns=8)
            axis = axes[row, column]
            axis.imshow(np.asarray(picture), cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
            name = {"ebm": "tilted", "gaussian": "Gaussian"}[prior]
            kept_layers = ", ".join(f"z_{i + 1}" for i in range(k, layers))
            if layers - k > 4:
                kept_layers = f"z_{k + 1} to z_{layers}"
            axis.set_title(f"{name} prior, {kept_layers} kept{told}", fontsize=10)
    if found:
        folder.mkdir(parents=True, exist_ok=True)
        workdir.write_json(folder / "hierarchical.json", found)
    return _save(figure, folder / "hierarchical.png")


def agreement_of(labels: np.ndarray) -> dict[str, float]:
    """How often two of `labels` [rows, columns] agree, of one row and of any.

    Example:
      >>> found = agreement_of(np.array([[1, 1, 1], [2, 2, 3]]))
      >>> found["in_rows"]  # 3 of 3 pairs, and 1 of 3
      0.6666666666666666
    """

    def pairs(labels):
        counts = np.unique(labels, return_counts=True)[1]
        return np.sum(counts * (counts - 1)) / (labels.size * (labels.size - 1))

    return {
        "in_rows": float(np.mean([pairs(row) for row in labels])),
        "overall": float(pairs(labels)),
    }


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
        x = datasets.to_unit(jnp.asarray(images[indices]))
        return jebm.posterior_sample(key, model, params, x)

    posterior = in_batches(key_posterior, draw, np.arange(num), batch_size)
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
    workdir.write_json(folder / "latent_planes.json", distances)

    times = _spaced(model.chains.prior.num_steps, 6)
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
            np.asarray(pictures.grid(decode(model, params, _at(prior, t, 16)))),
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
    return _save(figure, folder / "latent_planes.png")


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


def _times(values, count=12):
    """At most `count` of the indices of `values`, closer together at the start."""
    return _spaced(len(values) - 1, count)


def _spaced(num_steps, count):
    """At most `count` steps from 0 to num_steps, closer together at the start."""
    times = np.geomspace(1, num_steps, count - 1).round().astype(int).tolist()
    return sorted({0, *times})


def _at(traced, t, num):
    return jax.tree.map(lambda z: z[t, :num], traced)


def _cuts(layers: int) -> list[int]:
    """Up to four k, 1 <= k < layers, evenly spaced: z_{>k} is kept."""
    return sorted(set(np.linspace(1, layers - 1, 4).round().astype(int).tolist()))


def by_layer(key, model, params, images, folder: pathlib.Path) -> pathlib.Path:
    """Held-out images, decoded from ever fewer layers of their posterior.

    z_{>k} is that of the image, and the layers below are drawn from the prior given it.
    """
    key_posterior, key_prior = jax.random.split(key)
    x = datasets.to_unit(images[:_NUM_CHAINS])
    latents = jebm.posterior_sample(key_posterior, model, params, jnp.asarray(x))
    columns = {"image": x, "all layers": decode(model, params, latents)}
    for k in _cuts(len(latents)):
        columns[f"z_{k + 1} up" if k + 1 < len(latents) else f"z_{k + 1}"] = (
            jebm.sample(key_prior, model, params, len(x), above=latents[k:]).x
        )
    figure, axes = plt.subplots(
        1, len(columns), figsize=(1.1 * len(columns), 7.6), layout="constrained"
    )
    for axis, (title, shown) in zip(axes, columns.items(), strict=True):
        picture = pictures.grid(np.asarray(shown), columns=1)
        axis.imshow(np.asarray(picture), cmap="gray", vmin=0, vmax=255)
        axis.set(xticks=[], yticks=[])
        axis.set_title(title, fontsize=9)
    figure.suptitle("Posterior of these layers, the rest drawn anew", fontsize=10)
    return _save(figure, folder / "by_layer.png")


def _save(figure, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)
    return file
