"""Other samplers of a model's prior, that its own chain is held against."""

import dataclasses
from typing import TypeVar

import jebm
from jebm import tempering
from jebm.kernels import Chain

LONG_CHAIN = 4  # times the length of the run's

_Chain = TypeVar("_Chain", bound=Chain)


def lengthened(chain: _Chain) -> _Chain:
    """Returns the chain, 4 times as long."""
    return dataclasses.replace(chain, num_steps=LONG_CHAIN * chain.num_steps)


def exact(model: jebm.Model, num_times: int) -> jebm.MALA:
    """Returns tested steps of half the size, `num_times` those of the prior's chain.

    They keep the density's own law, whatever the chain's bias.
    """
    own = model.chains.prior
    return jebm.MALA(num_times * own.num_steps, 0.5 * own.step_size)


def tempered(model: jebm.Model, num_temperatures: int) -> jebm.Tempered:
    """Returns steps as many and as long as those of the prior's chain, tempered."""
    own = model.chains.prior
    b = tempering.temperature_schedule(num_temperatures)
    return jebm.Tempered(own.num_steps, own.step_size, inverse_temperatures=b)
