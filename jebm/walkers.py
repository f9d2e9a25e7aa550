"""Estimates log Z during training: walkers follow the law of changing parameters.

A walker starts at N(0, I) and is annealed. Each time it is moved, its b grows by 1 / J
until it is 1, and it takes MALA steps that keep

    pi_b(eps) = N(eps; 0, I) exp(b g(eps)),     g = -E(T(eps))

of the parameters at hand. Before it moves, its weight takes up what has changed since
the last time, b and the parameters:

    log w <- log w + b' g'(eps) - b g(eps)

So w is a weight of annealed importance sampling whose last law moves: the mean of w
over the walkers at b = 1 is Z of the parameters that they have last followed. Walkers
that start anew, a few each time, keep the weights from spreading without bound, where
others resample. (Jarzynski, cond-mat/9610209; Neal, physics/9803008; along the learning
of an energy: arXiv 2305.19414, where the walkers are the chains that it learns from)

Let them follow averaged parameters: those of single updates jump about, and each jump
costs effective walkers.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jebm import checks, langevin, mala, types
from jebm.annealing import ADAPTED_TO, GAIN, tempered
from jebm.chains import draw_noise, example_keys
from jebm.hierarchy import Latents
from jebm.importance import Estimate, estimate
from jebm.model import Model, Params
from jebm.partition import log_tilt

_NUM_STEPS, _ANNEALING, _RESTART_PROBABILITY = 20, 20, 0.02


class Walkers(NamedTuple):
    """What to copy, to save, and to move on: a pytree of arrays."""

    eps: Latents  # where they stand, each [N, *shape_i]
    inverse_temperature: jax.Array  # b, [N]
    log_weight: jax.Array  # log w, [N], nats
    tilt: jax.Array  # g where they stand, by the parameters followed last, [N]
    step_size: jax.Array  # [], of all


def start(
    key: types.Key,
    model: Model,
    params: Params,
    num_walkers: int,
    *,
    step_size: jax.typing.ArrayLike = 0.5,
) -> Walkers:
    """Starts walkers at N(0, I) with plain importance weights, log w = g.

    These are exact where E = 0, as energies start. Elsewhere few of them count, until
    they have started anew.

    Args:
      key: typed key, [].
      model: the model; it needs an energy.
      params: its parameters.
      num_walkers: N.
      step_size: s of the first MALA steps; `follow` adapts it.

    Raises:
      ValueError: for an argument out of range, or params that do not fit the model.

    Example:
      >>> import jebm
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> params = jebm.init(jax.random.key(0), model)  # E = 0
      >>> log_z(start(jax.random.key(1), model, params, 100)).value.item()
      0.0
    """
    checks.key(key)
    checks.params(model, params)
    checks.positive_int("num_walkers", num_walkers)
    checks.number("step_size", step_size)
    if model.energy is None:
        raise ValueError("walkers need a model with an energy: without, log Z is 0")
    keys = example_keys(key, jnp.arange(num_walkers))
    return _start(keys, model, params, step_size)


@jax.jit
def _start(keys, model, params, step_size):
    eps = draw_noise(keys, model, params)
    tilt = jax.vmap(log_tilt(model, params))(eps)
    return Walkers(
        eps, jnp.ones_like(tilt), tilt, tilt, jnp.asarray(step_size, tilt.dtype)
    )


def follow(
    key: types.Key,
    model: Model,
    params: Params,
    walkers: Walkers,
    *,
    num_steps: int = _NUM_STEPS,
    annealing: int = _ANNEALING,
    restart_probability: jax.typing.ArrayLike = _RESTART_PROBABILITY,
) -> Walkers:
    """Moves all walkers on, to the law of `params`.

    Args:
      key: typed key, [], another one each time.
      model: the model.
      params: its parameters now.
      walkers: of `start` or of the last call.
      num_steps: MALA steps of each walker; each costs one gradient.
      annealing: J, calls from N(0, I) to b = 1.
      restart_probability: with which a walker starts anew.

    Returns:
      The walkers. Their step has moved towards the acceptance that MALA is fastest at.

    Raises:
      ValueError: for an argument out of range, or params that do not fit the model.

    Example:
      >>> import jebm
      >>> model, params = jebm.load_pretrained("digits")
      >>> walkers = start(jax.random.key(0), model, params, 100)
      >>> walkers = follow(jax.random.key(1), model, params, walkers, num_steps=2)
      >>> walkers.eps[0].shape[0]
      100
    """
    checks.key(key)
    checks.params(model, params)
    checks.instance("walkers", walkers, Walkers)
    checks.positive_int("num_steps", num_steps)
    checks.positive_int("annealing", annealing)
    checks.number("restart_probability", restart_probability, most=1)
    num = len(walkers.tilt)
    keys = example_keys(key, jnp.arange(num))
    after, acceptance = move(
        keys, model, params, walkers, num_steps, annealing, restart_probability
    )
    return adapted(after, acceptance.mean())


@functools.partial(jax.jit, static_argnames=("num_steps", "annealing"))
def move(
    keys: jax.Array,
    model: Model,
    params: Params,
    walkers: Walkers,
    num_steps: int = _NUM_STEPS,
    annealing: int = _ANNEALING,
    restart_probability: jax.typing.ArrayLike = _RESTART_PROBABILITY,
) -> tuple[Walkers, jax.Array]:
    """Moves walkers as `follow`, with keys [N] of their own; returns acceptances, [N].

    Of walkers that are split over devices: join the acceptances before `adapted`.
    """
    fresh = draw_noise(keys, model, params)
    g = log_tilt(model, params)

    def one(key, eps, fresh, b, log_weight, tilt):
        key_restart, key_chain = jax.random.split(key)
        p = jnp.asarray(restart_probability, b.dtype)
        restarted = jax.random.bernoulli(key_restart, p)
        eps = jax.tree.map(lambda new, old: jnp.where(restarted, new, old), fresh, eps)
        b = jnp.where(restarted, 0, b)
        log_weight = jnp.where(restarted, 0, log_weight)
        # The last of the J steps ends at 1, whatever the rounding.
        after = jnp.where(b > 1 - 1.5 / annealing, 1, b + 1 / annealing).astype(b.dtype)
        log_weight += after * g(eps) - b * tilt
        state, info = langevin.run(
            key_chain,
            eps,
            tempered(g, after),
            num_steps=num_steps,
            step_size=walkers.step_size,
            kernel=mala.MALA,
        )
        eps = state.position
        return (eps, after, log_weight, g(eps)), info.acceptance_rate

    eps, *others = walkers[:-1]
    moved, acceptance = jax.vmap(one)(keys, eps, fresh, *others)
    eps, b, log_weight, tilt = moved
    return Walkers(eps, b, log_weight, tilt, walkers.step_size), acceptance


def adapted(walkers: Walkers, acceptance: jax.Array) -> Walkers:
    """Returns the walkers with the step that their mean acceptance, [], asks for."""
    step_size = mala.adapted_step(walkers.step_size, acceptance, ADAPTED_TO, GAIN)
    return walkers._replace(step_size=step_size)


def log_weights(walkers: Walkers) -> jax.Array:
    """Returns log w of the walkers at b = 1, -inf of the others, [N]."""
    return jnp.where(walkers.inverse_temperature == 1, walkers.log_weight, -jnp.inf)


def log_z(walkers: Walkers) -> Estimate:
    """Estimates log Z of the parameters followed last, from walkers at b = 1.

    Returns:
      An `Estimate` of fields [], nats; not finite where none is there. Where its
      effective samples are few, do not trust it.
    """
    return of_arrived(log_weights(walkers))


@jax.jit
def of_arrived(log_w: jax.Array) -> Estimate:
    """Returns `importance.estimate` of the log w that are not -inf, [N]."""
    arrived = jnp.isfinite(log_w).astype(log_w.dtype)
    value, _, effective = estimate(log_w)
    num, missing = arrived.sum(), jnp.log(arrived.mean())
    # The relative variance of the weights is num / effective - 1.
    error = jnp.sqrt(jnp.maximum(num / effective - 1, 0) / jnp.maximum(num - 1, 1))
    return Estimate(value - missing, error, jnp.where(num > 0, effective, 0))
