"""Langevin dynamics on any log-density, one chain at a time.

    position <- position + (step_size^2 / 2) grad logdensity + step_size sqrt(T) noise

This is the one step-size convention of the package. Posterior and prior chains
differ by `logdensity_fn` only. Functions take one chain (`logdensity_fn` returns a
scalar) and are to be vmapped over (key, position); nothing here is compiled, the
caller compiles.

On N(0, 1) the uncorrected chain has the stationary variance 1 / (1 - step_size^2 / 4)
and is unstable from step_size = 2 on; in general it is stable only while
step_size^2 / 4 times the largest curvature of -logdensity stays below 1.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jebm.threefry import fused

PyTree = Any
LogDensity = Callable[[PyTree], jax.Array]


class LangevinState(NamedTuple):
    """What the next step needs."""

    position: PyTree  # leaves of any shape


class LangevinInfo(NamedTuple):
    """Metrics of a step; `run` returns their average over the steps."""

    logdensity: jax.Array  # [], nats, where the step started
    grad_norm: jax.Array  # [], of grad logdensity, where the step started
    acceptance_rate: jax.Array  # [], probability; 1 for the uncorrected chain


class Kernel(NamedTuple):
    """A Markov chain as three pure functions.

    `init(position, logdensity_fn) -> state`, where `state.position` exists;
    `draw(key, position) -> noise`, all that is random in one step, of the shapes of
    `position` and not of its values; and
    `move(noise, state, logdensity_fn, step_size, temperature) -> (state, info)`.
    """

    init: Callable
    draw: Callable
    move: Callable

    def step(
        self,
        key: jax.Array,
        state: Any,
        logdensity_fn: LogDensity,
        step_size: jax.typing.ArrayLike,
        temperature: jax.typing.ArrayLike = 1.0,
    ) -> tuple[Any, Any]:
        """Takes one step.

        Args:
          key: typed key, [].
          state: the chain's state; `state.position` is any pytree of float arrays.
          logdensity_fn: position -> [], in nats, up to a constant.
          step_size: [].
          temperature: [], the T of the equation above. 0 is plain gradient ascent.

        Returns:
          The new state, and the info of the point the step started from.

        Example:
          >>> state = LANGEVIN.init(jnp.ones(2), None)
          >>> state, _ = LANGEVIN.step(jax.random.key(0), state,
          ...     lambda z: -0.5 * jnp.sum(z**2), step_size=1.0, temperature=0.0)
          >>> state.position
          Array([0.5, 0.5], dtype=float32)
        """
        noise = self.draw(key, state.position)
        return self.move(noise, state, logdensity_fn, step_size, temperature)


def init(position: PyTree, logdensity_fn: LogDensity) -> LangevinState:
    """Starts a chain at `position`."""
    del logdensity_fn  # evaluated by `move`, so that K steps cost K gradients
    return LangevinState(position)


def normal_like(key: jax.Array, tree: PyTree) -> PyTree:
    """Draws standard normal numbers of the shapes and dtypes of `tree`."""
    # In one draw for all leaves: on a CPU each call of the generator costs more than
    # its numbers.
    flat, unravel = ravel_pytree(tree)
    return unravel(jax.random.normal(key, flat.shape, flat.dtype))


def move(
    noise: PyTree,
    state: LangevinState,
    logdensity_fn: LogDensity,
    step_size: jax.typing.ArrayLike,
    temperature: jax.typing.ArrayLike = 1.0,
) -> tuple[LangevinState, LangevinInfo]:
    """Takes one uncorrected Langevin step; costs one gradient."""
    logdensity, grad = jax.value_and_grad(logdensity_fn)(state.position)
    position = update(noise, state.position, grad, step_size, temperature)
    info = LangevinInfo(logdensity, global_norm(grad), jnp.ones_like(logdensity))
    return LangevinState(position), info


def update(noise, position, grad, step_size, temperature):
    """Computes the next position by the equation above."""
    return jax.tree.map(
        lambda z, g, noise: (
            z + 0.5 * step_size**2 * g + step_size * jnp.sqrt(temperature) * noise
        ).astype(z.dtype),
        position,
        grad,
        noise,
    )


def global_norm(tree: PyTree) -> jax.Array:
    """Computes the Euclidean norm over all leaves, []."""
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


LANGEVIN = Kernel(init, normal_like, move)


def run(
    key: jax.Array,
    position: PyTree,
    logdensity_fn: LogDensity,
    *,
    num_steps: int | jax.Array,
    step_size: jax.typing.ArrayLike,
    temperature: jax.typing.ArrayLike = 1.0,
    kernel: Kernel = LANGEVIN,
) -> tuple[Any, LangevinInfo]:
    """Runs one chain; equals `num_steps` calls of `kernel.step` in a loop.

    Step t draws from `fold_in(key, t)`. Memory does not grow with `num_steps`.

    Args:
      key: typed key, [].
      position: where to start, any pytree of float arrays.
      logdensity_fn: position -> [], in nats, up to a constant.
      num_steps: how many steps; 0 returns the start and an info of zeros. Another
        number compiles anew, unless it is an array [], which is taken on trust.
      step_size: [].
      temperature: [], Langevin's T.
      kernel: `langevin.LANGEVIN`, `mala.MALA` or one of `underdamped.underdamped`.

    Returns:
      The final state and the LangevinInfo averaged over the steps, so that a value
      that is not finite at any step shows.

    Raises:
      ValueError: if `num_steps` is not a non-negative integer, or `kernel` is none.

    Example:
      >>> logdensity_fn = lambda z: -0.5 * jnp.sum(z**2)
      >>> def chain(key):
      ...     return run(key, jnp.zeros(2), logdensity_fn, num_steps=100, step_size=0.5)
      >>> state, info = jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(0), 8))
      >>> state.position.shape, info.logdensity.shape
      ((8, 2), (8,))
    """
    if not isinstance(num_steps, jax.Array):
        check_num_steps(num_steps)
    carry, advance = _chain(
        key, position, logdensity_fn, step_size, temperature, kernel
    )
    state, total, _ = advance(carry, num_steps)
    return state, _mean(total, num_steps)


def trajectory(
    key: jax.Array,
    position: PyTree,
    logdensity_fn: LogDensity,
    *,
    num_steps: int,
    every: int,
    step_size: jax.typing.ArrayLike,
    temperature: jax.typing.ArrayLike = 1.0,
    kernel: Kernel = LANGEVIN,
) -> tuple[Any, LangevinInfo, PyTree]:
    """Runs the chain of `run`, same draws, and stores the position every `every` steps.

    Args:
      key, position, logdensity_fn, num_steps, step_size, temperature, kernel: of `run`.
      every: steps between stored positions; must divide `num_steps`.

    Returns:
      Final state and averaged info as of `run`, and the positions at steps 0, every,
      ..., num_steps, with a leading axis of num_steps / every + 1.

    Raises:
      ValueError: if `every` is not a positive divisor of `num_steps`.

    Example:
      >>> _, _, path = trajectory(jax.random.key(0), jnp.zeros(2),
      ...     lambda z: -0.5 * jnp.sum(z**2), num_steps=20, every=5, step_size=0.5)
      >>> path.shape
      (5, 2)
    """
    check_num_steps(num_steps)
    if every < 1 or num_steps % every:
        raise ValueError(
            f"every must be a positive divisor of num_steps, got every={every}, "
            f"num_steps={num_steps}"
        )

    carry, advance = _chain(
        key, position, logdensity_fn, step_size, temperature, kernel
    )

    def body(carry, _):
        carry = advance(carry, every)
        return carry, carry[0].position

    (state, total, _), path = jax.lax.scan(body, carry, length=num_steps // every)
    path = jax.tree.map(lambda z, zs: jnp.concatenate([z[None], zs]), position, path)
    return state, _mean(total, num_steps), path


def check_num_steps(num_steps: int) -> None:
    """Raises a ValueError unless `num_steps` is a non-negative integer."""
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 0:
        raise ValueError(f"num_steps must be an integer >= 0, got {num_steps!r}")


# For so many steps, or of so many numbers, a chain draws its noise at once, at most.
_STEPS, _NUMBERS = 5, 2048


def _chain(key, position, logdensity_fn, step_size, temperature, kernel):
    """Returns where a chain starts, and what advances it by a number of steps.

    What is carried is the state, the sum of the infos, and the number of the step, of
    which the key of a step is made: keys split ahead would be memory that grows with
    the number of steps.
    """
    if not hasattr(kernel, "move"):
        raise ValueError(
            f"kernel must be a langevin.Kernel, such as mala.MALA, got {kernel!r}; a "
            "chain such as jebm.MALA() has one, jebm.MALA().kernel"
        )
    key = fused(key)

    def draw(t):
        return kernel.draw(jax.random.fold_in(key, t), position)

    # Traced once, though the shapes of its info are asked for.
    @functools.partial(jax.jit, inline=True)
    def move(noise, state):
        return kernel.move(noise, state, logdensity_fn, step_size, temperature)

    def advance(carry, num_steps):
        # On a CPU a call of the generator costs more than its numbers: where these are
        # few, those of several steps are drawn together.
        at_once = max(1, min(_STEPS, _NUMBERS // size))
        known = isinstance(num_steps, int)
        if known:
            at_once = next(n for n in range(at_once, 0, -1) if num_steps % n == 0)
        last = carry[2] + num_steps

        def steps(_, carry):
            t = carry[2]
            noise = jax.vmap(draw)(t + jnp.arange(at_once, dtype=jnp.int32))

            def one(i, carry):
                state, total, t = carry
                state, info = move(jax.tree.map(lambda n: n[i], noise), state)
                return state, jax.tree.map(jnp.add, total, info), t + 1

            left = at_once if known else jnp.minimum(at_once, last - t)
            return jax.lax.fori_loop(0, left, one, carry)

        return jax.lax.fori_loop(0, -(-num_steps // at_once), steps, carry)

    state, t = kernel.init(position, logdensity_fn), jnp.zeros((), jnp.int32)
    noise = jax.eval_shape(draw, t)
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(noise))
    _, info = jax.eval_shape(move, noise, state)
    total = jax.tree.map(lambda i: jnp.zeros(i.shape, i.dtype), info)
    return (state, total, t), advance


def _mean(total, num_steps):
    count = jnp.maximum(num_steps, 1)
    return jax.tree.map(lambda x: x / count.astype(x.dtype), total)
