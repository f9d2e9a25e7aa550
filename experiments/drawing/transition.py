"""Prior chains along the way, above the energy profile of 256 chains."""

import jax
from matplotlib.figure import Figure

from experiments.drawing.chains import Chains, compute_prior, draw_chains
from experiments.runs import Run


def compute(key: jax.Array, run: Run) -> Chains:
    """Runs the chain of the tilted prior, every step of it."""
    return compute_prior(key, run, run.model.chains.prior, every=1)


def draw(chains: Chains) -> Figure:
    """Draws the images above the energy."""
    return draw_chains(chains, "Langevin transition of the tilted prior")
