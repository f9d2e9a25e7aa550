"""Parallel tempering in eps-space: chains that mix where one alone does not.

    pi_b(eps) ~ N(eps; 0, I) exp(b g(eps)),      0 = b_1 < ... < b_R = 1

R replicas move at once, replica r by a Langevin step on pi_{b_r}; the one at b = 0
needs no chain and is drawn anew. Then neighbours in b exchange their positions with
probability

    min(1, exp[ (b_{r+1} - b_r) (g(eps_r) - g(eps_{r+1})) ])

which keeps prod_r pi_{b_r}. What is found where g hardly counts travels up to b = 1,
over barriers that a chain there would not cross.

With moves by `jebm.mala` the last replica shows exactly the tilted prior, at any step
size. That is not always what is wanted: energies learn from uncorrected chains, and
what they have learned is the law of these, of their step size.
(Geyer 1991; Swendsen and Wang, PRL 57, 2607)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jebm import mala
from jebm.hierarchy import Latents, log_standard_normal
from jebm.langevin import Kernel, LogDensity, global_norm, normal_like, update
from jebm.mala import MalaNoise, MalaState


def temperature_schedule(num_temperatures: int = 8) -> jax.Array:
    """Returns b = (r / (R - 1))^2, [R]: dense at the Gaussian end, where E varies most.

    Neighbours must exchange often (`TemperedInfo.exchange`, .2 and more). An energy
    that asks for another schedule finds it in `partition.tune`, which places its
    `inverse_temperatures` where the energy varies.

    Example:
      >>> [round(float(b), 2) for b in temperature_schedule(3)]
      [0.0, 0.25, 1.0]
    """
    if num_temperatures < 2:
        raise ValueError(f"num_temperatures must be at least 2, got {num_temperatures}")
    return jnp.linspace(0.0, 1.0, num_temperatures) ** 2


def check_inverse_temperatures(value) -> None:
    """Raises a ValueError unless `value` rises from 0 to 1; arrays are taken on trust.

    Only their shape is checked, so that nothing waits for a device.
    """
    if np.ndim(value) != 1 or np.shape(value)[0] < 2:
        raise ValueError(
            "inverse_temperatures must be at least two numbers, from 0 to 1, "
            f"got {value!r}"
        )
    if isinstance(value, jax.Array) or any(isinstance(v, jax.Array) for v in value):
        return
    b = np.asarray(value)
    if b[0] != 0 or b[-1] != 1 or not (np.diff(b) > 0).all():
        raise ValueError(
            f"inverse_temperatures must rise from 0 to 1, got {b.tolist()}"
        )


class TemperedState(NamedTuple):
    """What the next step needs."""

    position: Latents  # of the replica at b = 1
    replicas: MalaState  # on pi_1, leaves [R, ...], from b = 0 to b = 1


class TemperedNoise(NamedTuple):
    """What is random in a step, all standard normal and of one draw."""

    moves: MalaNoise  # leaves [R, ...]
    exchange: jax.Array  # [R - 1], of neighbours
    parity: jax.Array  # [], its sign says which of the pairs may exchange


class TemperedInfo(NamedTuple):
    """What a person reads; `langevin.run` averages it over the steps."""

    logdensity: jax.Array  # [], nats, of the replica at b = 1, where the step started
    grad_norm: jax.Array  # [], of its gradient
    acceptance_rate: jax.Array  # [], probability of its step; 1 if not adjusted
    exchange: jax.Array  # [R - 1], of neighbours' exchange, where it was proposed


def tempered(inverse_temperatures: jax.Array, adjusted: bool = False) -> Kernel:
    """Makes the kernel with replicas at these b, [R], rising from 0 to 1.

    `adjusted` moves replicas by MALA and leaves the tilted prior exactly invariant;
    without, they take the Langevin steps that energies are learned with.

    For `langevin.run` on a log-density in eps-space, log N(eps; 0, I) + g(eps), of a
    tuple of layers; a step costs R gradients. All replicas start at the same position:
    what the replicas need to forget it is a few steps.

    Example:
      >>> from jebm import langevin
      >>> def two_wells(eps):  # at -2 and 2, with a barrier of 16 nats between
      ...     return log_reference(eps) - 4 * jnp.sum((abs(eps[0]) - 2) ** 2)
      >>> def chain(key):
      ...     state, info = langevin.run(key, (jnp.full((1,), 2.0),), two_wells,
      ...         num_steps=200, step_size=0.4,
      ...         kernel=tempered(temperature_schedule(4)))
      ...     return state.position[0][0]
      >>> end = jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(0), 100))
      >>> 30 < int((end < 0).sum()) < 70
      True
    """
    num = inverse_temperatures.shape[0]

    def at(b, replica):
        """Returns the replica's state on pi_b."""
        reference = log_reference(replica.position)
        return MalaState(
            replica.position,
            (1 - b) * reference + b * replica.logdensity,
            jax.tree.map(
                lambda eps, grad: (1 - b) * -eps + b * grad,
                replica.position,
                replica.grad,
            ),
        )

    def init(position: Latents, logdensity_fn: LogDensity) -> TemperedState:
        one = mala.init(position, logdensity_fn)
        return TemperedState(
            position,
            jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num, *leaf.shape)), one),
        )

    def draw(key: jax.Array, position: Latents) -> TemperedNoise:
        dtype = position[0].dtype

        def zeros(*shape):
            return jnp.zeros(shape, dtype)

        moves = MalaNoise(
            jax.tree.map(lambda eps: zeros(num, *eps.shape), position), zeros(num)
        )
        return normal_like(key, TemperedNoise(moves, zeros(num - 1), zeros()))

    def move(noise, state, logdensity_fn, step_size, temperature=1.0):
        if temperature != 1:
            raise ValueError(
                "parallel tempering has its own temperatures: temperature must be 1, "
                f"got {temperature}"
            )
        b = inverse_temperatures.astype(state.position[0].dtype)

        def move_one(noise, b, replica):
            current, fresh = at(b, replica), noise.proposal
            moved = update(fresh, current.position, current.grad, step_size, 1.0)
            position = jax.tree.map(lambda a, m: jnp.where(b == 0, a, m), fresh, moved)
            proposal = mala.init(position, logdensity_fn)
            # Where g is not finite, no other replica must see it.
            finite = jnp.isfinite(proposal.logdensity)
            acceptance = finite.astype(proposal.logdensity.dtype)
            if adjusted:  # but at b = 0, where the proposal is of N(0, I) itself
                adjustment = mala.acceptance_probability(
                    current, at(b, proposal), step_size
                )
                acceptance = jnp.where(b == 0, acceptance, adjustment)
            accepted = mala.accept(noise.acceptance, acceptance, proposal, replica)
            return accepted, acceptance

        replicas, acceptance = jax.vmap(move_one)(noise.moves, b, state.replicas)
        replicas, exchange = _exchange(noise, b, replicas)
        info = TemperedInfo(
            state.replicas.logdensity[-1],
            global_norm(jax.tree.map(lambda grad: grad[-1], state.replicas.grad)),
            acceptance[-1],
            exchange,
        )
        position = jax.tree.map(lambda leaf: leaf[-1], replicas.position)
        return TemperedState(position, replicas), info

    return Kernel(init, draw, move)


def log_reference(eps: Latents) -> jax.Array:
    """Computes log N(eps; 0, I) of one position (no batch axis), [], in nats.

    Example:
      >>> round(log_reference((jnp.zeros(2),)).item(), 4)
      -1.8379
    """
    return log_standard_normal(jax.tree.map(lambda e: e[None], eps))[0]


def _exchange(noise, b, replicas):
    """Exchanges neighbours: the pairs that start at an even index, or at an odd one."""
    lower = jnp.arange(b.shape[0] - 1)
    g = replicas.logdensity - jax.vmap(log_reference)(replicas.position)
    probability = jnp.exp(jnp.minimum(jnp.diff(b) * -jnp.diff(g), 0))
    proposed = (lower % 2 == 1) == (noise.parity > 0)
    swapped = proposed & mala.happens(noise.exchange, probability)
    none = jnp.zeros((1,), bool)
    up = jnp.concatenate([swapped, none]).astype(lower.dtype)
    down = jnp.concatenate([none, swapped]).astype(lower.dtype)
    index = jnp.arange(b.shape[0]) + up - down
    return jax.tree.map(lambda leaf: leaf[index], replicas), probability
