"""Metropolis-adjusted Langevin (MALA), an exact chain.

The proposal is the step of `jebm.langevin`, accepted with probability

    min(1, exp[ (l(z') - l(z)) / T + log g(z | z') - log g(z' | z) ])
    g(z' | z) = N(z'; z + (s^2 / 2) grad l(z), s^2 T)

so that the chain leaves exp(l / T) invariant at any step size s.
"""

import math
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jebm.langevin import (
    Kernel,
    LangevinInfo,
    LogDensity,
    PyTree,
    global_norm,
    normal_like,
    update,
)

State = TypeVar("State")  # of a tested chain, any pytree


class MalaState(NamedTuple):
    """What the next step needs; value and gradient are kept, never computed twice."""

    position: PyTree
    logdensity: jax.Array  # [], nats
    grad: PyTree  # like position


def init(position: PyTree, logdensity_fn: LogDensity) -> MalaState:
    """Starts a chain at `position`; costs one gradient."""
    return MalaState(position, *jax.value_and_grad(logdensity_fn)(position))


class MalaNoise(NamedTuple):
    """The random numbers of a step, in one draw: see `langevin.normal_like`."""

    proposal: PyTree  # standard normal, like position
    acceptance: jax.Array  # [], standard normal; it decides by its distribution


def draw(key: jax.Array, position: PyTree) -> MalaNoise:
    """Draws the noise of one step."""
    dtype = jax.tree.leaves(position)[0].dtype
    return normal_like(key, MalaNoise(position, jnp.zeros((), dtype)))


def move(
    noise: MalaNoise,
    state: MalaState,
    logdensity_fn: LogDensity,
    step_size: jax.typing.ArrayLike,
    temperature: jax.typing.ArrayLike = 1.0,
) -> tuple[MalaState, LangevinInfo]:
    """Takes one adjusted step; costs one gradient.

    A proposal whose log-density is not finite is rejected. `temperature` must be
    positive: a noiseless proposal has no density.

    Example:
      >>> from jebm import langevin
      >>> state, info = langevin.run(jax.random.key(0), jnp.zeros(2),
      ...     lambda z: -0.5 * jnp.sum(z**2), num_steps=50, step_size=1.0, kernel=MALA)
      >>> bool(0.5 < info.acceptance_rate < 1.0)
      True
    """
    position = update(
        noise.proposal, state.position, state.grad, step_size, temperature
    )
    proposal = init(position, logdensity_fn)
    acceptance = acceptance_probability(state, proposal, step_size, temperature)
    info = LangevinInfo(state.logdensity, global_norm(state.grad), acceptance)
    return accept(noise.acceptance, acceptance, proposal, state), info


def acceptance_probability(
    state: MalaState,
    proposal: MalaState,
    step_size: jax.typing.ArrayLike,
    temperature: jax.typing.ArrayLike = 1.0,
) -> jax.Array:
    """Computes the probability above, []; 0 if the new log-density is not finite."""

    # The two g are Gaussians of one variance: their squares, multiplied out.
    corrections = jax.tree.map(
        lambda z, grad, new_z, new_grad: jnp.sum(
            (grad + new_grad) * (new_z - z + 0.25 * step_size**2 * (new_grad - grad))
        ),
        state.position,
        state.grad,
        proposal.position,
        proposal.grad,
    )
    difference = proposal.logdensity - state.logdensity
    log_ratio = (difference - 0.5 * sum(jax.tree.leaves(corrections))) / temperature
    return metropolis(log_ratio, proposal.logdensity)


def metropolis(log_ratio: jax.Array, logdensity: jax.Array) -> jax.Array:
    """Computes min(1, exp log_ratio), []; 0 if the new log-density is not finite.

    Example:
      >>> metropolis(jnp.array(1.0), jnp.array(jnp.inf)).item()
      0.0
    """
    sound = jnp.isfinite(logdensity) & ~jnp.isnan(log_ratio)
    return jnp.where(sound, jnp.exp(jnp.minimum(log_ratio, 0)), 0.0)


def accept(
    normal: jax.Array, probability: jax.Array, proposal: State, state: State
) -> State:
    """Returns `proposal` with that probability, [], else `state`."""
    accepted = happens(normal, probability)
    return jax.tree.map(lambda new, old: jnp.where(accepted, new, old), proposal, state)


def happens(normal: jax.Array, probability: jax.Array) -> jax.Array:
    """Returns True with that probability, decided by a standard normal of its shape."""
    uniform = 0.5 * jax.lax.erfc(-math.sqrt(0.5) * normal)  # its distribution function
    return uniform.astype(probability.dtype) <= probability


_ADAPTATION = 0.05  # of log s by an update, times what acceptance is above its target


def adapted_step(
    step_size: jax.Array,
    acceptance: jax.Array,
    target: jax.typing.ArrayLike,
    gain: float = _ADAPTATION,
) -> jax.Array:
    """Returns a larger step if `acceptance` is above `target`, else a smaller one.

    Its log changes by `gain` (acceptance - target).

    Example:
      >>> bool(adapted_step(jnp.float32(0.3), jnp.float32(0.9), 0.7) > 0.3)
      True
    """
    return step_size * jnp.exp(gain * (acceptance - target))


MALA = Kernel(init, draw, move)
