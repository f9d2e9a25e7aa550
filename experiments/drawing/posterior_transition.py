"""Posterior chains of held-out images along the way, above log p(x | z)."""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from experiments.data.pixels import to_unit
from experiments.drawing.chains import (
    NUM_CHAINS,
    NUM_SHOWN,
    Chains,
    decode_some,
    draw_chains,
)
from experiments.evaluation.traces import log_likelihoods_along
from experiments.runs import Run
from jebm.chains import example_keys, trace_chains


def compute(key: jax.Array, run: Run) -> Chains:
    """Runs the posterior chain of held-out images; the last column is the image."""
    index = np.arange(NUM_CHAINS)
    x = to_unit(jnp.asarray(run.heldout[index % len(run.heldout)]))
    keys = example_keys(key, jnp.asarray(index))
    traced = _trace(keys, run.model, run.params, x)
    log_likelihoods = log_likelihoods_along(run.model, run.params, x, traced)
    chains = decode_some(run, traced, log_likelihoods, every=1)
    images = np.concatenate([chains.images, x[:NUM_SHOWN, None]], axis=1)
    return chains._replace(images=images, labels=(*chains.labels, "x"))


def draw(chains: Chains) -> Figure:
    """Draws the images above the log-likelihood."""
    title = "Langevin transition of the posterior, and the image"
    return draw_chains(chains, title, "log p(x | z) (nats)")


@jax.jit
def _trace(keys, model, params, x):
    """Returns the latents along the way."""
    return trace_chains(keys, model, params, model.chains.posterior, every=1, x=x)
