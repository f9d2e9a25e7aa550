"""Figures of a trained run: latent planes, Langevin transition, training curves."""

import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import jebm
from experiments import datasets, pictures, report, workdir
from experiments.learning import Role
from experiments.sample import in_batches, open_run
from jebm.metrics import energy_distance
from jebm.sampling import decode, example_keys, trace_chains

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PRIOR, POSTERIOR = "#0072B2", "#E69F00"  # colour-blind-safe
_NUM_POINTS = 4000  # of prior and of posterior in a latent plane
_NUM_CHAINS = 8  # rows of the transition


def figures(config, path: pathlib.Path) -> None:
    """Draws all figures of the run in `path` and its report."""
    model, params, _, splits = open_run(config, path)
    folder = path / "figures" / workdir.variant(path, config)
    key = jax.random.fold_in(jax.random.key(config.seed), Role.FIGURES)
    images = splits["train"].images
    drawn = []
    if lines := workdir.read_metrics(path):
        drawn.append(training_curves(lines, path / "figures"))
    if model.energy is not None and model.chains.prior.num_steps:
        drawn.append(transition(key, model, params, folder))
        batch_size = config.eval.batch_size
        drawn.append(latent_planes(key, model, params, images, folder, batch_size))
    for file in drawn:
        print(f"wrote {file}")
    report.write(path)


def training_curves(lines: list[dict], folder: pathlib.Path) -> pathlib.Path:
    """Draws the metrics over training steps."""
    panels = [
        ("log-likelihood of posterior samples", ["log_likelihood_nats"], "nats"),
        ("energies", ["energy_positive_nats", "energy_negative_nats"], "nats"),
        ("gap  E- minus E+", ["energy_gap_nats"], "nats"),
        ("chain gradients", ["posterior_grad_norm", "prior_grad_norm"], "norm"),
        ("acceptance under MALA", ["posterior_acceptance", "prior_acceptance"], ""),
        (_STIFFNESS, ["posterior_stiffness", "prior_stiffness"], ""),
    ]
    panels = [p for p in panels if any(name in line for line in lines for name in p[1])]
    rows, columns = -(-len(panels) // 3), min(3, len(panels))
    figure, axes = plt.subplots(
        rows, columns, figsize=(4 * columns, 2.6 * rows), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    rescues = [line["step"] for line in lines if "rescue" in line]
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, names, unit) in zip(axes.flat, panels, strict=False):
        for step in rescues:
            axis.axvline(step, color="crimson", linewidth=1, linestyle=":")
        if title == _STIFFNESS:
            axis.axhline(0.5, color="crimson", linewidth=1, linestyle="--")
        for name, colour in zip(names, (POSTERIOR, PRIOR), strict=False):
            points = [
                (line["step"], line[name])
                for line in lines
                if line.get(name) is not None  # null where it was not finite
            ]
            if points:
                axis.plot(*np.transpose(points), color=colour, label=_LABELS.get(name))
        axis.set(title=title, xlabel="training step", ylabel=unit)
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.3)
        if len(names) > 1 and axis.lines:
            axis.legend(fontsize=8)
    return _save(figure, folder / "training.png")


_STIFFNESS = "stiffness  s\u00b2/4 \u03bb_max,  unstable from 1"
_LABELS = {
    "energy_positive_nats": "E+  posterior samples",
    "energy_negative_nats": "E-  prior samples",
    **{f"prior_{x}": "prior chain" for x in ("grad_norm", "acceptance", "stiffness")},
    **{
        f"posterior_{x}": "posterior chain"
        for x in ("grad_norm", "acceptance", "stiffness")
    },
}


def transition(key, model, params, folder: pathlib.Path) -> pathlib.Path:
    """Decodes prior chains along the way, above the energy profile of 256 chains."""
    chain = model.chains.prior
    keys = example_keys(key, jnp.arange(256))
    traced = jax.jit(
        lambda keys, params: trace_chains(keys, model, params, chain, every=1)
    )(keys, params)
    energies = jax.vmap(lambda z: jebm.energy(model, params, z))(traced)  # [T, B]
    times = _times(chain.num_steps, 12)
    shown = [decode(model, params, _at(traced, t, _NUM_CHAINS)) for t in times]
    images = np.stack(shown, axis=1).reshape(-1, *model.image_shape)
    picture = np.asarray(pictures.grid(images, columns=len(times)))

    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(8, 7.5), height_ratios=[3, 1], layout="constrained"
    )
    top.imshow(picture, cmap="gray", vmin=0, vmax=255)
    width = picture.shape[1] / len(times)
    top.set_xticks([width * (i + 0.5) for i in range(len(times))], times)
    top.set_yticks([])
    top.set(title="Langevin transition of the tilted prior", xlabel="Langevin step")
    mean, spread = energies.mean(axis=1), energies.std(axis=1)
    steps = np.arange(chain.num_steps + 1)
    bottom.plot(steps, mean, color=PRIOR)
    bottom.fill_between(steps, mean - spread, mean + spread, color=PRIOR, alpha=0.2)
    bottom.set(xlabel="Langevin step", ylabel="E (nats)", xlim=(0, chain.num_steps))
    bottom.set_title("energy of 256 chains: mean and standard deviation", fontsize=10)
    bottom.grid(alpha=0.3)
    return _save(figure, folder / "transition.png")


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

    times = _times(model.chains.prior.num_steps, 6)
    layers = len(posterior)
    figure, axes = plt.subplots(
        layers + 1, len(times), figsize=(2.1 * len(times), 2.2 * (layers + 1)),
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
        "posterior's principal axes.  D: energy distance to the posterior",
        fontsize=11,
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
    values = {
        "tilted": energy_distance(tilted[:half], posterior[half:]),
        "untilted": energy_distance(untilted[:half], posterior[half:]),
        "posterior": energy_distance(posterior[:half], posterior[half:]),
    }
    return values | {"ratio": values["tilted"] / values["untilted"]}


def _times(num_steps, count):
    """At most `count` steps from 0 to num_steps, closer together at the start."""
    times = np.geomspace(1, num_steps, count - 1).round().astype(int).tolist()
    return sorted({0, *times})


def _at(traced, t, num):
    return jax.tree.map(lambda z: z[t, :num], traced)


def _save(figure, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)
    plt.close(figure)
    return file
