"""Chains along the way, and far beyond their length."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from experiments import pictures
from experiments.data.pixels import to_unit
from experiments.drawing.common import at, save, shown_times
from experiments.evaluation.traces import energies_along
from experiments.rundir.curves import PRIOR
from experiments.runtime.files import write_json
from jebm.chains import decode, example_keys, trace_chains
from jebm.objectives import posterior_terms

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NUM_CHAINS = 8  # rows of the transition


_LONG_RUN = 2500  # steps


def transition(key, model, params, folder: pathlib.Path) -> pathlib.Path:
    """Decodes prior chains along the way, above the energy profile of 256 chains."""
    chain = model.chains.prior
    traced, energies = _trace_prior(key, model, params, chain, every=1)
    return _draw_chains(
        folder / "transition.png",
        "Langevin transition of the tilted prior",
        [
            decode(model, params, at(traced, t, NUM_CHAINS))
            for t in shown_times(energies)
        ],
        energies,
        every=1,
    )


def posterior_transition(
    key, model, params, images, folder: pathlib.Path
) -> pathlib.Path:
    """Decodes posterior chains along the way; the last column is the image itself."""
    x = to_unit(jnp.asarray(images[np.arange(256) % len(images)]))
    keys = example_keys(key, jnp.arange(256))
    traced, values = jax.jit(_trace_posterior, static_argnums=1)(keys, model, params, x)
    shown = [
        decode(model, params, at(traced, t, NUM_CHAINS)) for t in shown_times(values)
    ]
    return _draw_chains(
        folder / "posterior_transition.png",
        "Langevin transition of the posterior, and the image",
        [*shown, x[:NUM_CHAINS]],
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
    write_json(folder / "long_run.json", found)
    return _draw_chains(
        folder / "long_run.png",
        f"{_LONG_RUN} steps of the tilted prior's chain\nenergy of the last 500 minus "
        f"that of the 500 before: {found['difference_in_sd']:+.3f} standard deviations",
        [
            decode(model, params, at(traced, t, NUM_CHAINS))
            for t in shown_times(energies)
        ],
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
    times = [t * every for t in shown_times(values)]
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
    return save(figure, file)
