"""Annealed importance sampling of a tilt g of the standard normal.

    pi_b(eps) = N(eps; 0, I) exp(b g(eps)),      b from 0 to 1

A particle starts at N(0, I) and takes one MALA step at each b_t. Its weight
w = prod_t exp[(b_t - b_{t-1}) g(eps_{t-1})] has the normaliser Z of pi_1 as its mean,
so that the log of a mean of weights lies below log Z in expectation. Backwards, from
exact samples of pi_1, the mean of 1/w is 1/Z and the estimate lies above.
(arXiv physics/9803008; both ways: arXiv 1511.02543)

`jebm.partition` does this for the energy of a model.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jebm import mala
from jebm.hierarchy import Latents
from jebm.tempering import log_reference

# (eps of one particle, what is given to it) -> [], nats
Tilt = Callable[..., jax.Array]

ADAPTED_TO = 0.574  # the acceptance that MALA moves fastest at (arXiv math/0108030)
GAIN = 0.2  # of `mala.adapted_step`, at each temperature


class Schedule(NamedTuple):
    """The path from N(0, I) to the target."""

    inverse_temperatures: jax.Array  # b, [T + 1], from 0 to 1
    step_sizes: jax.Array  # of the MALA step at each b but the first, [T]


def tempered(
    g: Callable[[Latents], jax.Array], b: jax.typing.ArrayLike
) -> Callable[[Latents], jax.Array]:
    """Returns log pi_b of one position, up to its normaliser."""

    def value(eps):
        return log_reference(eps) + b * g(eps)

    return value


def run(
    keys: jax.Array, start: Latents, g: Tilt, schedule: Schedule, *given: Any
) -> tuple[Latents, jax.Array]:
    """Anneals one particle per key.

    Args:
      keys: typed keys, [B].
      start: draws of N(0, I), each [B, *shape_i].
      g: the tilt.
      schedule: of `tune`.
      *given: pytrees of leaves [B, ...], of which g reads what is each particle's.

    Returns:
      Where the particles end, and log w, [B] in nats.

    Example:
      >>> from jebm.importance import estimate
      >>> keys = jax.random.split(jax.random.key(0), 100)
      >>> start = (jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys),)
      >>> g = lambda eps: eps[0] @ jnp.ones(3)  # log Z = 3 / 2
      >>> schedule = tune(jax.random.split(jax.random.key(1), 100), start, g, 50)
      >>> _, log_w = run(keys, start, g, schedule)
      >>> bool(abs(estimate(log_w).value - 1.5) < 0.2)
      True
    """

    def one(key, eps, given):
        tilt = _given(g, given)

        def body(carry, inputs):
            eps, log_w = carry
            t, before, after, step_size = inputs
            log_w += (after - before) * tilt(eps)
            return (_move(key, t, eps, tilt, after, step_size)[0], log_w), None

        return jax.lax.scan(body, (eps, _zero(eps)), _path(schedule))[0]

    return jax.vmap(one)(keys, start, given)


def run_backwards(
    keys: jax.Array, end: Latents, g: Tilt, schedule: Schedule
) -> jax.Array:
    """Anneals back from samples of pi_1, each [B, *shape_i]; returns log 1/w, [B]."""

    def one(key, eps):
        def body(carry, inputs):
            eps, log_w = carry
            t, before, after, step_size = inputs
            eps = _move(key, t, eps, g, after, step_size)[0]
            return (eps, log_w - (after - before) * g(eps)), None

        carry = (eps, _zero(eps))
        return jax.lax.scan(body, carry, _path(schedule), reverse=True)[0][1]

    return jax.vmap(one)(keys, end)


def tune(
    keys: jax.Array,
    start: Latents,
    g: Tilt,
    num_temperatures: int,
    *given: Any,
    groups: int = 1,
) -> Schedule:
    """Chooses temperatures and step sizes by a first run, of one particle per key.

    Steps follow `ADAPTED_TO`. Temperatures are dense where g varies much: equally
    spaced in the integral of its standard deviation over b (thermodynamic length, arXiv
    0706.0559). Particles of one group, which lie together, share what is given: g of
    another group may have another mean.

    Args:
      keys, start, g, *given: as of `run`.
      num_temperatures: T.
      groups: that divide B.
    """
    dtype = jax.tree.leaves(start)[0].dtype
    # Dense where g is not yet known to be large.
    b = jnp.linspace(0, 1, num_temperatures + 1, dtype=dtype) ** 3

    def spread(eps):
        values = jax.vmap(lambda eps, given: g(eps, *given))(eps, given)
        return values.reshape(groups, -1).std(axis=1).mean()

    def body(carry, inputs):
        eps, step_size = carry
        t, b = inputs
        eps, acceptance = jax.vmap(
            lambda key, eps, given: _move(key, t, eps, _given(g, given), b, step_size)
        )(keys, eps, given)
        found = mala.adapted_step(step_size, acceptance.mean(), ADAPTED_TO, GAIN)
        step_size = jnp.minimum(found, 1.0)
        return (eps, step_size), (step_size, spread(eps))

    inputs = (jnp.arange(num_temperatures), b[1:])
    carry = start, jnp.ones((), dtype)
    _, (step_sizes, spreads) = jax.lax.scan(body, carry, inputs)
    spreads = jnp.concatenate([spread(start)[None], spreads])
    return _even_schedule(b, step_sizes, spreads)


def _even_schedule(b, step_sizes, spreads):
    """Chooses as many b that lie even in thermodynamic length, and their steps.

    Args:
      b: inverse temperatures that were tried, from 0 to 1, [T + 1].
      step_sizes: that suited each but the first, [T].
      spreads: standard deviation of g at each, [T + 1].
    """
    # A floor, so that b moves where g does not vary at all.
    spreads = jnp.maximum(spreads, 1e-3 * jnp.maximum(spreads.max(), 1e-6))
    length = jnp.cumsum(0.5 * (spreads[1:] + spreads[:-1]) * jnp.diff(b))
    length = jnp.concatenate([jnp.zeros((1,), b.dtype), length / length[-1]])
    even = jnp.linspace(0, 1, len(b), dtype=b.dtype)
    chosen = jnp.interp(even, length, b).at[0].set(0).at[-1].set(1)
    return Schedule(chosen, jnp.exp(jnp.interp(chosen[1:], b[1:], jnp.log(step_sizes))))


def _given(g, given):
    return lambda eps: g(eps, *given)


def _zero(eps):
    return jnp.zeros((), jax.tree.leaves(eps)[0].dtype)


def _path(schedule):
    b, step_sizes = schedule
    return jnp.arange(len(step_sizes)), b[:-1], b[1:], step_sizes


def _move(key, t, eps, g, b, step_size):
    """Takes a MALA step at b, the t-th of a particle, and returns its acceptance."""
    fn = tempered(g, b)
    state, info = mala.MALA.step(
        jax.random.fold_in(key, t + 1), mala.init(eps, fn), fn, step_size
    )
    return state.position, info.acceptance_rate
