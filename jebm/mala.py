"""Metropolis-adjusted Langevin (MALA), the exact chain to hold the short one against.

The proposal is the step of `jebm.langevin`, accepted with probability

    min(1, exp[ (l(z') - l(z)) / T + log g(z | z') - log g(z' | z) ])
    g(z' | z) = N(z'; z + (s^2 / 2) grad l(z), s^2 T)

so that the chain leaves exp(l / T) invariant at any step size s.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jebm.langevin import (
    Kernel,
    LangevinInfo,
    LogDensity,
    PyTree,
    global_norm,
    move,
    normal_like,
)


class MalaState(NamedTuple):
    """What the next step needs; value and gradient are kept, never computed twice."""

    position: PyTree
    logdensity: jax.Array  # [], nats
    grad: PyTree  # like position


def init(position: PyTree, logdensity_fn: LogDensity) -> MalaState:
    """Starts a chain at `position`; costs one gradient."""
    return MalaState(position, *jax.value_and_grad(logdensity_fn)(position))


def step(
    key: jax.Array,
    state: MalaState,
    logdensity_fn: LogDensity,
    step_size: jax.typing.ArrayLike,
    temperature: jax.typing.ArrayLike = 1.0,
) -> tuple[MalaState, LangevinInfo]:
    """One adjusted step; costs one gradient. Arguments as of `langevin.step`.

    A proposal whose log-density is not finite is rejected. `temperature` must be
    positive: a noiseless proposal has no density.

    Example:
      >>> from jebm import langevin
      >>> state, info = langevin.run(jax.random.key(0), jnp.zeros(2),
      ...     lambda z: -0.5 * jnp.sum(z**2), num_steps=50, step_size=1.0, kernel=MALA)
      >>> bool(0.5 < info.acceptance < 1.0)
      True
    """
    # The normal that decides on acceptance is of the same draw, see `normal_like`.
    dtype = jax.tree.leaves(state.position)[0].dtype
    noise, normal = normal_like(key, (state.position, jnp.zeros((), dtype)))
    proposal = init(
        move(noise, state.position, state.grad, step_size, temperature), logdensity_fn
    )
    acceptance = acceptance_probability(state, proposal, step_size, temperature)
    info = LangevinInfo(state.logdensity, global_norm(state.grad), acceptance)
    uniform = 0.5 * jax.lax.erfc(-math.sqrt(0.5) * normal)  # its distribution function
    accepted = uniform.astype(acceptance.dtype) <= acceptance
    return _choose(accepted, proposal, state), info


def acceptance_probability(
    state: MalaState,
    proposal: MalaState,
    step_size: jax.typing.ArrayLike,
    temperature: jax.typing.ArrayLike = 1.0,
) -> jax.Array:
    """The probability above, []; 0 where the proposal's log-density is not finite."""

    def log_transition(start, end):
        squares = jax.tree.map(
            lambda a, g, b: jnp.sum((b - a - 0.5 * step_size**2 * g) ** 2),
            start.position,
            start.grad,
            end.position,
        )
        return -sum(jax.tree.leaves(squares)) / (2 * step_size**2 * temperature)

    log_ratio = (
        (proposal.logdensity - state.logdensity) / temperature
        + log_transition(proposal, state)
        - log_transition(state, proposal)
    )
    sound = jnp.isfinite(proposal.logdensity) & ~jnp.isnan(log_ratio)
    return jnp.where(sound, jnp.exp(jnp.minimum(log_ratio, 0)), 0.0)


def accept(
    key: jax.Array, probability: jax.Array, proposal: MalaState, state: MalaState
) -> MalaState:
    """`proposal` with that probability, [], else `state`."""
    accepted = jax.random.uniform(key, (), probability.dtype) < probability
    return _choose(accepted, proposal, state)


def _choose(accepted, proposal, state):
    return jax.tree.map(lambda new, old: jnp.where(accepted, new, old), proposal, state)


MALA = Kernel(init, step)
