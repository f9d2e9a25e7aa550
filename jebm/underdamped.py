"""Metropolis-adjusted underdamped Langevin: an exact chain that keeps its direction.

The chain moves a position z and a velocity v on exp[(l(z) - |v|^2 / 2) / T]. A step of
size s refreshes a part of the velocity, kicks, drifts and kicks:

    v  <- a v + sqrt((1 - a^2) T) noise,      a = exp(-friction s)
    v' = v + (s / 2) grad l(z)
    z' = z + s v'
    v' <- v' + (s / 2) grad l(z')

and is accepted with probability

    min(1, exp[ (l(z') - l(z) - |v'|^2 / 2 + |v|^2 / 2) / T ]).

A rejected step keeps z and turns v back. So the chain leaves exp(l / T) invariant at
any step size and friction. As the friction grows, its steps become those of
`jebm.mala`, which diffuse; at a small one they go on in one direction for a time
1 / friction, and travel further with the same number of gradients.
(Horowitz 1991; the splitting OBABO of Bussi and Parrinello, arXiv 0803.4083)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jebm import mala
from jebm.langevin import Kernel, LangevinInfo, LogDensity, PyTree, global_norm


class UnderdampedState(NamedTuple):
    """What the next step needs; value and gradient are kept, never computed twice."""

    position: PyTree
    logdensity: jax.Array  # [], nats
    grad: PyTree  # like position
    velocity: PyTree  # like position
    moving: jax.Array  # [], 0 before the first step, which draws all of v; then 1


def init(position: PyTree, logdensity_fn: LogDensity) -> UnderdampedState:
    """Starts a chain at `position`; costs one gradient."""
    start = mala.init(position, logdensity_fn)
    at_rest = jax.tree.map(jnp.zeros_like, position)
    return UnderdampedState(*start, at_rest, jnp.zeros_like(start.logdensity))


def underdamped(friction: float | jax.Array = 1.5) -> Kernel:
    """Makes the kernel; each step costs one gradient.

    A proposal whose log-density is not finite is rejected. The temperature must be
    positive.

    Args:
      friction: [], of the equations above, positive; its inverse is the time for which
        the chain keeps its direction. In eps-space the Gaussian part has the time 1.

    Example:
      >>> from jebm import langevin
      >>> state, info = langevin.run(jax.random.key(0), jnp.zeros(2),
      ...     lambda z: -0.5 * jnp.sum(z**2), num_steps=50, step_size=0.5,
      ...     kernel=underdamped(1.0))
      >>> bool(0.9 < info.acceptance_rate < 1.0)
      True
    """

    def move(
        noise: mala.MalaNoise,
        state: UnderdampedState,
        logdensity_fn: LogDensity,
        step_size: jax.typing.ArrayLike,
        temperature: jax.typing.ArrayLike = 1.0,
    ) -> tuple[UnderdampedState, LangevinInfo]:
        kept = state.moving * jnp.exp(-friction * step_size)
        added = jnp.sqrt((1 - kept**2) * temperature)
        state = state._replace(
            velocity=jax.tree.map(
                lambda v, noise: (kept * v + added * noise).astype(v.dtype),
                state.velocity,
                noise.proposal,
            ),
            moving=jnp.ones_like(state.moving),
        )
        proposal = leapfrog(state, logdensity_fn, step_size)
        acceptance = acceptance_probability(state, proposal, temperature)
        turned = state._replace(velocity=jax.tree.map(jnp.negative, state.velocity))
        info = LangevinInfo(state.logdensity, global_norm(state.grad), acceptance)
        return mala.accept(noise.acceptance, acceptance, proposal, turned), info

    return Kernel(init, mala.draw, move)


def leapfrog(
    state: UnderdampedState,
    logdensity_fn: LogDensity,
    step_size: jax.typing.ArrayLike,
) -> UnderdampedState:
    """Kicks, drifts and kicks; costs one gradient, and is reversible.

    Example:
      >>> logdensity_fn = lambda z: -0.5 * jnp.sum(z**2)
      >>> start = init(jnp.ones(2), logdensity_fn)._replace(velocity=jnp.ones(2))
      >>> there = leapfrog(start, logdensity_fn, 0.5)
      >>> turned = there._replace(velocity=-there.velocity)
      >>> back = leapfrog(turned, logdensity_fn, 0.5)
      >>> bool(jnp.allclose(back.position, start.position))
      True
    """

    def kick(velocity, grad):
        return jax.tree.map(
            lambda v, g: (v + 0.5 * step_size * g).astype(v.dtype), velocity, grad
        )

    velocity = kick(state.velocity, state.grad)
    position = jax.tree.map(
        lambda z, v: (z + step_size * v).astype(z.dtype), state.position, velocity
    )
    there = mala.init(position, logdensity_fn)
    return UnderdampedState(*there, kick(velocity, there.grad), state.moving)


def acceptance_probability(
    state: UnderdampedState,
    proposal: UnderdampedState,
    temperature: jax.typing.ArrayLike = 1.0,
) -> jax.Array:
    """Computes the probability above, []; 0 if the new log-density is not finite."""
    # |v'|^2 - |v|^2, multiplied out, so that little is lost where the two are large.
    gained = jax.tree.map(
        lambda v, new: 0.5 * jnp.sum((new - v) * (new + v)),
        state.velocity,
        proposal.velocity,
    )
    difference = proposal.logdensity - state.logdensity
    log_ratio = (difference - sum(jax.tree.leaves(gained))) / temperature
    return mala.metropolis(log_ratio, proposal.logdensity)
