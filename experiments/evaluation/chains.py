"""Acceptance and stiffness of the chains."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.pixels import to_unit
from experiments.evaluation import mixing
from jebm.chains import example_keys, run_chains
from jebm.diagnostics import chain_diagnostics


def chains(key, model, params, heldout, options) -> dict[str, float]:
    """Acceptance under MALA and stiffness of both chains, see `jebm.diagnostics`.

    Of the tempered sampler, the exchange that neighbours accept least.
    """
    num = options.num_diagnosed
    x = to_unit(heldout[np.arange(num) % len(heldout)])
    keys = example_keys(key, jnp.arange(num))
    examined = {}
    if model.chains.posterior.num_steps:  # not where the encoder alone draws
        examined["posterior"] = (model.chains.posterior, x)
    if model.energy is not None:
        examined["prior"] = (model.chains.prior, None)
    found = {}
    for name, (chain, given) in examined.items():
        result = _diagnose(keys, model, params, chain, x=given)
        found[f"{name}_acceptance"] = result.acceptance_rate.mean().item()
        found[f"{name}_stiffness"] = result.stiffness.mean().item()
    if options.num_temperatures and model.energy is not None:
        chain = mixing.tempered(model, options.num_temperatures)
        info = _run(keys, model, params, chain).info
        found["tempered_exchange"] = info.exchange.mean(axis=0).min().item()
    return found


_run = jax.jit(run_chains)


_diagnose = jax.jit(chain_diagnostics)
