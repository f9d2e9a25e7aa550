"""Prior chains far beyond the length of training: do images and energy hold?"""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments.drawing.chains import Chains, compute_prior, draw_chains
from experiments.runs import Run

_NUM_STEPS, _EVERY = 2500, 10
_WINDOW = 500  # steps that are compared with as many before


class LongRun(NamedTuple):
    """Long chains.

    Attributes:
      chains: along the way.
      plateau: of `plateau`, the last 500 steps against the 500 before.
      trained_steps: those that the model is sampled with.
    """

    chains: Chains
    plateau: dict[str, float]
    trained_steps: int


def compute(key: jax.Array, run: Run) -> LongRun:
    """Runs the chain of the tilted prior for 2,500 steps."""
    trained = run.model.chains.prior
    chain = dataclasses.replace(trained, num_steps=_NUM_STEPS)
    chains = compute_prior(key, run, chain, _EVERY)
    return LongRun(chains, plateau(chains.values, _WINDOW // _EVERY), trained.num_steps)


def numbers(long_run: LongRun) -> dict[str, float]:
    """Returns what long_run.json holds, see `plateau`."""
    return long_run.plateau


def draw(long_run: LongRun) -> Figure:
    """Draws the images above the energy, the change of which the title gives."""
    title = (
        f"{_NUM_STEPS} steps of the tilted prior's chain\nenergy of the last {_WINDOW} "
        f"minus that of the {_WINDOW} before: "
        f"{long_run.plateau['difference_in_sd']:+.3f} standard deviations"
    )
    return draw_chains(long_run.chains, title, trained_steps=long_run.trained_steps)


def plateau(energies: np.ndarray, window: int) -> dict[str, float]:
    """Compares the last `window` of energies [T, chains] with the `window` before.

    Returns:
      Both means in nats, the standard error of their difference over the chains, and
      the difference in standard deviations of the energy.

    Example:
      >>> result = plateau(np.array([[9.0, 9.0], [1.0, 3.0], [2.0, 6.0]]), window=1)
      >>> [result[k] for k in ("before_nats", "last_nats", "difference_in_sd")]
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
