"""Acceptance and stiffness of the chains: do their steps follow the density?"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.pixels import to_unit
from experiments.evaluation.contract import Result, Table
from experiments.evaluation.samplers import tempered
from experiments.models import active_chains
from experiments.runs import Run
from jebm.chains import example_keys, run_chains
from jebm.diagnostics import chain_diagnostics
from jebm.kernels import Chain

_LEAST_ACCEPTANCE = 0.4
_COLUMNS = {
    "acceptance": "acceptance of MALA steps of that size",
    "stiffness": "stiffness",
    "exchange": "exchange rate, the lowest of all neighbours",
}


def evaluate(key: jax.Array, run: Run) -> Result:
    """Measures acceptance under MALA and stiffness, see `jebm.diagnostics`.

    Also measures the lowest exchange rate between neighbours of the tempered sampler.
    """
    numbers = diagnose(key, run)
    about = (
        "The chains' steps. Without a Metropolis test, keep the stiffness below .5; "
        "with one, most steps should be accepted."
    )
    if not numbers:  # a model without chains
        return Result({})
    tables = (chain_table(numbers, _COLUMNS),)
    return Result(numbers, {}, about, tables, tuple(_refused(run, numbers)))


def _refused(run, numbers):
    """Warns of chains whose Metropolis test refuses most steps."""
    for name, chain in active_chains(run.model).items():
        rate = numbers[f"{name}_acceptance"]
        if chain.adjusted and rate < _LEAST_ACCEPTANCE:
            yield (
                f"The {name} chain accepts {rate:.0%} of its steps of "
                f"{chain.step_size:g} and hardly moves: a smaller "
                f"chains.{name}.step_size is better"
            )


def diagnose(key: jax.Array, run: Run) -> dict[str, float]:
    """Returns the numbers of `evaluate`."""
    model, params, options = run.model, run.params, run.experiment.eval
    num = options.num_diagnosed
    x = to_unit(run.heldout[np.arange(num) % len(run.heldout)])
    keys = example_keys(key, jnp.arange(num))
    chains, numbers = active_chains(model), {}
    for name, chain in chains.items():
        given = x if name == "posterior" else None
        result = _diagnose(keys, model, params, chain, x=given)
        numbers[f"{name}_acceptance"] = result.acceptance_rate.mean().item()
        numbers[f"{name}_stiffness"] = result.stiffness.mean().item()
    if options.num_temperatures and "prior" in chains:
        chain = tempered(model, options.num_temperatures)
        info = _run(keys, model, params, chain).info
        numbers["tempered_exchange"] = info.exchange.mean(axis=0).min().item()
    return numbers


def acceptance_rate(key: jax.Array, run: Run, chain: Chain) -> float:
    """Returns the share of a prior chain's steps that are accepted.

    Of `eval.num_diagnosed` chains; steps that are not tested all are.
    """
    keys = example_keys(key, jnp.arange(run.experiment.eval.num_diagnosed))
    return _run(keys, run.model, run.params, chain).info.acceptance_rate.mean().item()


_run = jax.jit(run_chains)


_diagnose = jax.jit(chain_diagnostics)


def chain_table(numbers, columns: dict[str, str]) -> Table:
    """Makes a row per chain of the numbers CHAIN_NAME, a column per NAME."""
    chains = ("prior", "tempered", "posterior")
    shown = {
        name: title
        for name, title in columns.items()
        if any(f"{chain}_{name}" in numbers for chain in chains)
    }
    rows = [
        [f"{chain} chain", *(numbers.get(f"{chain}_{name}") for name in shown)]
        for chain in chains
        if any(f"{chain}_{name}" in numbers for name in shown)
    ]
    return Table(["", *shown.values()], rows)
