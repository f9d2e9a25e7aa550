"""Log-normalisers by annealed importance sampling in eps-space.

    pi_b(eps) = N(eps; 0, I) exp(b g(eps)),      b from 0 to 1
    g = -E(T(eps))                      its normaliser at b = 1 is Z
    g = -E(T(eps)) + log p(x|T(eps))    Z_x = Z p(x), so log p(x) = log Z_x - log Z
    g = -E(z) + log[p(x|z) p_beta(z) / q(z|x)]    the same Z_x, and eps the noise that
                                        an encoder transports to z: from q at b = 0

Both are estimated by annealed importance sampling (`jebm.annealing`): forwards, from
N(0, I), they lie below in expectation, backwards from exact samples above.

log p(x) is a difference of two estimates and bounds nothing: read it with its error.

The errors are those of the weights at hand (`jebm.importance`). They say nothing of a
mode of pi_1 that no particle has found: `check_log_z` looks for one, given samples of
the model, and `pareto_k` looks at the tail of an encoder's weights.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jebm import annealing, checks, types
from jebm.annealing import Schedule
from jebm.chains import encode, example_keys, start_positions, to_eps
from jebm.densities import one_chain
from jebm.hierarchy import Latents, has_encoder, inverse_transport
from jebm.importance import Estimate, estimate
from jebm.kernels import ANCESTRAL
from jebm.model import Model, Params, float_dtype
from jebm.tempering import log_reference

_TEMPERATURES = 500  # of a schedule, where nothing else is said


class LogZCheck(NamedTuple):
    """log Z from both ends of the path, and whether they agree; see `check_log_z`."""

    forward: Estimate  # of `log_z`, from N(0, I)
    reverse: Estimate  # of `reverse_log_z`, from the samples given
    gap: jax.Array  # reverse minus forward, nats
    unseen_share: jax.Array  # of the samples, those that forward could not have found
    agrees: jax.Array  # a bool


def log_z(
    key: types.Key,
    model: Model,
    params: Params,
    *,
    num_particles: int = 500,
    num_temperatures: int | None = None,
    schedule: Schedule | None = None,
) -> Estimate:
    """Estimates log Z of the tilted prior; 0 for a Gaussian prior.

    The standard error does not cover a mode that no particle has found. Particles pass
    a narrow deep well of the energy by, and then all weights agree on a value that may
    be nats too low: `check_log_z` finds it, given samples that have been there. See
    `Estimate` for what else the error leaves out.

    Args:
      key: typed key, []. Particle n draws from `fold_in(key, n)`.
      model: the model.
      params: its parameters.
      num_particles: weights that the estimate averages.
      num_temperatures: MALA steps of each particle; None for 500.
      schedule: of `tune`, instead; None to tune one here, on particles of their own.

    Returns:
      An `Estimate` of fields [], nats. With `num_temperatures` it becomes exact, with
      `num_particles` its error becomes known.

    Raises:
      ValueError: for an argument out of range, `num_temperatures` beside a schedule, or
        params that do not fit the model.

    Example:
      >>> import jebm
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> params = jebm.init(jax.random.key(0), model)  # E = 0, so log Z = 0
      >>> result = log_z(jax.random.key(1), model, params, num_particles=8,
      ...               num_temperatures=4)
      >>> result.value.item(), result.effective_samples.item()
      (0.0, 8.0)
    """
    num = _temperatures(num_temperatures, schedule)
    return _estimate(key, model, params, None, (), num_particles, num, schedule)


def log_z_given(
    key: types.Key,
    model: Model,
    params: Params,
    above: types.Latents,
    *,
    num_particles: int = 100,
    num_temperatures: int | None = None,
    schedule: Schedule | None = None,
) -> Estimate:
    """Estimates log Z_k(z_{>k}), of the k lower layers given those above.

    Z_k = E[exp(-E(z))], z_{<=k} of the Gaussian prior given z_{>k}: it normalises the
    tilted conditional prior, and holds the energy of the layers above too.

    Args:
      key, model, params, num_particles, num_temperatures, schedule: as of `log_z`.
      above: z_{>k}, the top layers' latents, bottom to top, each [N, *shape_i].

    Returns:
      An `Estimate` of fields [N], nats.

    Example:
      >>> import jebm
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> params = jebm.init(jax.random.key(0), model)
      >>> result = log_z_given(jax.random.key(1), model, params, (jnp.ones((3, 8)),),
      ...                     num_particles=8, num_temperatures=4)
      >>> result.value.shape
      (3,)
    """
    _check(key, model, params)
    _check_above(model, above)
    num, above = _temperatures(num_temperatures, schedule), tuple(above)
    return _estimate(key, model, params, None, above, num_particles, num, schedule)


def log_likelihood(
    key: types.Key,
    model: Model,
    params: Params,
    x: types.Images,
    *,
    log_z: jax.typing.ArrayLike,
    start: str = "prior",
    num_particles: int = 16,
    num_temperatures: int | None = None,
    schedule: Schedule | None = None,
) -> Estimate:
    """Estimates log p(x) = log Z_x - log Z of each image, a density on [0, 1].

    Args:
      key, model, params, num_particles, schedule: as of `log_z`.
      x: images [N, H, W, C], floating-point in [0, 1]; all particles of all of them
        are in memory at once.
      log_z: log Z, the value that `log_z` found, whose error is not in the result's.
      start: "prior", or "encoder" for a path from q(z|x), which is shorter: with one
        temperature it is importance sampling by q, with more it corrects what q lacks.
      num_temperatures: as of `log_z`; None for 1,000.

    Returns:
      An `Estimate` of fields [N], nats.

    Example:
      >>> import jebm
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> params = jebm.init(jax.random.key(0), model)
      >>> result = log_likelihood(jax.random.key(1), model, params,
      ...     jnp.full((3, 8, 8, 1), 0.5), log_z=0.0, num_particles=8,
      ...     num_temperatures=4)
      >>> result.value.shape
      (3,)
    """
    checks.params(model, params)
    checks.images(model, x)
    _check_start(model, start, x)
    num = _temperatures(num_temperatures, schedule, 1000)
    result = _estimate(key, model, params, x, (), num_particles, num, schedule, start)
    return result._replace(value=result.value - log_z)


def reverse_log_z(
    key: types.Key,
    model: Model,
    params: Params,
    latents: types.Latents,
    schedule: Schedule,
) -> Estimate:
    """Estimates log Z by annealing backwards from samples of the tilted prior.

    Where these are exact it lies above log Z in expectation, as `log_z` lies below; of
    samples by a chain it is an estimate of either sign. The standard error does not
    cover modes of which the samples hold none, or too few: `check_log_z` tells more.

    Args:
      key: typed key, [].
      model: the model.
      params: its parameters.
      latents: z, a tuple bottom to top of [N, *shape_i], a particle each.
      schedule: of `tune`.

    Returns:
      An `Estimate` of fields [], nats.

    Raises:
      ValueError: for params or latents that do not fit the model.

    Example:
      >>> import jebm
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> params = jebm.init(jax.random.key(0), model)
      >>> z = jebm.sample(jax.random.key(1), model, params, 8).latents
      >>> schedule = tune(jax.random.key(2), model, params, num_temperatures=4)
      >>> result = reverse_log_z(jax.random.key(3), model, params, z, schedule)
      >>> result.effective_samples.item()
      8.0
    """
    return _of_reverse(_run_backwards(key, model, params, latents, schedule))


def check_log_z(
    key: types.Key,
    model: Model,
    params: Params,
    latents: types.Latents,
    *,
    num_particles: int = 500,
    num_temperatures: int | None = None,
    schedule: Schedule | None = None,
) -> LogZCheck:
    """Compares `log_z` with `reverse_log_z` from samples of the model.

    Forward lies below log Z where no particle finds a mode; backwards from samples of
    that mode lies above. Both are near it only where annealing connects N(0, I) and the
    samples. They agree where

      - the gap is within 4 combined standard errors, taken as .1 nats where these are
        less and as 1 nat where they are more; and
      - no sample was unseen: annealed back, none has a weight above num_particles Z.

    Of a true law the gap passes 4 errors once in 16,000 times; short chains leave a
    bias, for which .1 nats are allowed; and errors above 1/4 nat are of some 16
    effective samples and no more to be trusted. The second rule finds a mode of which
    the samples hold too few to move the mean: of weights above num_particles Z the
    forward run expects less than one (Markov's inequality), so each such sample stands
    for mass that it cannot see.

    Samples need not be exact where MALA mixes: its first steps move them to the prior.
    Agreement proves nothing of modes that neither the particles nor the samples have
    found. Disagreement does not tell which side is wrong: more temperatures, and longer
    chains for the samples, do.

    Args:
      key: typed key, []; forward is `log_z` of the same key.
      model, params, num_particles, num_temperatures: as of `log_z`.
      latents: z of the model's own chains, persistent ones or those of `jebm.sample`, a
        tuple bottom to top of [N, *shape_i]; a particle of the reverse run each.
      schedule: of `tune`, for both runs; None to tune one here.

    Returns:
      A `LogZCheck` of fields [], nats.

    Raises:
      ValueError: for an argument out of range, or params or latents that do not fit the
        model.

    Source: arXiv 1511.02543 (both ways); cond-mat/9901352 (Crooks: the weights of exact
    samples backwards have the law of forward weights times w / Z).

    Example:
      >>> import jebm
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> params = jebm.init(jax.random.key(0), model)  # E = 0, so log Z = 0
      >>> z = jebm.sample(jax.random.key(1), model, params, 8).latents
      >>> result = check_log_z(jax.random.key(2), model, params, z, num_particles=8,
      ...                     num_temperatures=4)
      >>> abs(result.gap.item()), result.unseen_share.item(), result.agrees.item()
      (0.0, 0.0, True)
    """
    _check(key, model, params)
    checks.latents(model, latents)
    num = _temperatures(num_temperatures, schedule)
    if schedule is None:  # the one that `log_z` would tune
        key_tune, _ = jax.random.split(key)
        schedule = tune(key_tune, model, params, num_temperatures=num)
    forward = log_z(key, model, params, num_particles=num_particles, schedule=schedule)
    # Another key than the two that `log_z` splits this one into.
    key_reverse = jax.random.fold_in(key, 2)
    log_1_over_w = _run_backwards(key_reverse, model, params, latents, schedule)
    reverse = _of_reverse(log_1_over_w)
    gap = reverse.value - forward.value
    unseen = -log_1_over_w > forward.value + jnp.log(num_particles)
    agrees = (jnp.abs(gap) <= _tolerance(forward, reverse)) & ~unseen.any()
    return LogZCheck(forward, reverse, gap, unseen.mean(), agrees)


def tune(
    key: types.Key,
    model: Model,
    params: Params,
    *,
    x: types.Images | None = None,
    above: types.Latents = (),
    start: str = "prior",
    num_temperatures: int = _TEMPERATURES,
) -> Schedule:
    """Chooses temperatures and step sizes by a first run of 64 particles.

    Steps follow the acceptance that MALA moves fastest at, .574. Temperatures are dense
    where g varies much: equally spaced in the integral of its standard deviation over b
    (thermodynamic length, arXiv 0706.0559). Of many images or latents above, the first
    eight are tuned on, and the schedule is one for all.

    Args:
      key, model, params: as of `log_z`.
      x: images, for `log_likelihood`.
      above: z_{>k}, for `log_z_given`.
      start: of `log_likelihood`.
      num_temperatures: T.

    Returns:
      The Schedule.
    """
    _check(key, model, params, num_temperatures=num_temperatures)
    if x is not None:
        checks.images(model, x)
    if above:
        _check_above(model, above)
    _check_start(model, start, x)
    subset = jax.tree.map(lambda a: a[:_TUNED_ON], (x, above))
    return _tune(key, model, params, *subset, num_temperatures, start)


def log_weights(
    keys: jax.Array,
    model: Model,
    params: Params,
    schedule: Schedule,
    *,
    x: jax.Array | None = None,
    above: Latents = (),
    start: str = "prior",
) -> jax.Array:
    """Computes log w of one particle per key, [B], for particles sharded over devices.

    `x` [B, H, W, C] and `above` [B, *shape_i], where given, are of each particle. Join
    the weights of all devices by `estimate`.
    """
    _check_start(model, start, x)
    return _particles(keys, model, params, x, above, schedule, start)[1]


def particles(
    keys: jax.Array,
    model: Model,
    params: Params,
    schedule: Schedule,
    *,
    x: jax.Array | None = None,
    start: str = "prior",
) -> tuple[Latents, jax.Array]:
    """Returns where the particles of `log_weights` end, and their log w.

    A weighted mean over the particles of an image is one over its posterior, so that
    log p(x) under another prior needs no other chain: the mean of w times the ratio of
    the priors.

    Args:
      keys, model, params, schedule, start: as of `log_weights`.
      x: an image of each particle, or None for the prior.

    Returns:
      eps of the particles, bottom to top, each [B, *shape_i], and log w [B].

    Example:
      >>> import jebm
      >>> model, params = jebm.load_pretrained("digits")
      >>> schedule = tune(jax.random.key(0), model, params, num_temperatures=3)
      >>> keys = jax.random.split(jax.random.key(1), 4)
      >>> eps, log_w = particles(keys, model, params, schedule)
      >>> eps[0].shape, log_w.shape
      ((4, 10), (4,))
    """
    _check_start(model, start, x)
    position, log_w = _particles(keys, model, params, x, (), schedule, start)
    if x is not None and start == "encoder":  # the noise of q, not of the hierarchy
        x = x.astype(log_w.dtype)
        position = inverse_transport(*encode(model, params, x, position)[:2])
    return position, log_w


_TUNED_ON = 8  # images, or latents above
_PILOTS = 64  # particles of `tune`, over all of these
_ERRORS, _LEAST, _MOST = 4, 0.1, 1.0  # of `check_log_z`: errors, nats, nats


def _check(key, model, params, **counts):
    checks.key(key)
    checks.params(model, params)
    for name, value in counts.items():
        checks.positive_int(name, value)


def _check_start(model, start, x):
    checks.one_of("start", start, ("prior", "encoder"))
    if start == "encoder" and (x is None or not has_encoder(model.backbone)):
        wrong = "there are no images" if x is None else "the backbone has no encoder"
        raise ValueError(f"start='encoder' needs q(z | x), and {wrong}")


def _check_above(model, above):
    if not above:
        raise ValueError("above must hold the latents of at least the top layer")
    checks.above(model, above, above[0].shape[0])


def _temperatures(num, schedule, default=_TEMPERATURES):
    """Returns the temperatures of a schedule that is still to be tuned."""
    if num is None:
        return default
    checks.positive_int("num_temperatures", num)
    if schedule is not None:
        raise ValueError(
            "num_temperatures is of a schedule to be tuned, and one is given: leave "
            "out num_temperatures or schedule"
        )
    return num


def _estimate(
    key, model, params, x, above, num_particles, num_temperatures, schedule,
    start="prior",
):  # fmt: skip
    _check(key, model, params, num_particles=num_particles)
    key_tune, key_run = jax.random.split(key)
    if schedule is None:
        schedule = tune(
            key_tune, model, params, x=x, above=above, start=start,
            num_temperatures=num_temperatures,
        )  # fmt: skip
    return _run(key_run, model, params, x, above, schedule, num_particles, start)


@functools.partial(jax.jit, static_argnums=(6, 7))
def _run(key, model, params, x, above, schedule, num_particles, start):
    given = (x, above)
    if not jax.tree.leaves(given):
        keys = example_keys(key, jnp.arange(num_particles))
        log_w = _particles(keys, model, params, None, (), schedule, start)[1]
        return estimate(log_w)
    num = jax.tree.leaves(given)[0].shape[0]
    keys = example_keys(key, jnp.arange(num * num_particles))
    given = jax.tree.map(lambda a: jnp.repeat(a, num_particles, axis=0), given)
    log_w = _particles(keys, model, params, *given, schedule, start)[1]
    return estimate(log_w.reshape(num, num_particles))


def _run_backwards(key, model, params, latents, schedule):
    """Computes log 1/w of each sample, [N]."""
    checks.key(key)
    checks.params(model, params)
    checks.latents(model, latents)
    keys = example_keys(key, jnp.arange(latents[0].shape[0]))
    return _reverse_log_weights(keys, model, params, tuple(latents), schedule)


def _of_reverse(log_1_over_w):
    result = estimate(log_1_over_w)
    return result._replace(value=-result.value)


def _tolerance(forward, reverse):
    """Returns the largest gap, in nats, of two estimates that agree."""
    error = jnp.hypot(forward.standard_error, reverse.standard_error)
    return jnp.clip(_ERRORS * error, _LEAST, _MOST)


def _target(model, params, x, above, start):
    """Returns g of one position, [], for `x` and `above` of one example."""
    x = None if x is None else x.astype(float_dtype(params))
    space = "encoder" if start == "encoder" else "eps"
    logdensity_fn = one_chain(model, params, space, x, 1.0, above)
    return lambda eps: logdensity_fn(eps) - log_reference(eps)


def log_tilt(model: Model, params: Params) -> Callable[[Latents], jax.Array]:
    """Returns g of the prior: one position in eps-space -> [], nats."""
    return _target(model, params, None, (), "prior")


def _given(model, params, start):
    """Returns g of one particle: (its eps, x, above) -> [], nats."""

    def g(eps, x, above):
        return _target(model, params, x, above, start)(eps)

    return g


@functools.partial(jax.jit, static_argnums=(1, 6))
def _particles(keys, model, params, x, above, schedule, start):
    eps = start_positions(keys, model, params, ANCESTRAL, above=above)
    g = _given(model, params, start)
    return annealing.run(keys, eps, g, schedule, x, above)


@functools.partial(jax.jit, static_argnums=1)
def _reverse_log_weights(keys, model, params, latents, schedule):
    """Computes log 1/w of one particle per key, from the latents at its end."""
    eps = to_eps(model, params, latents)
    return annealing.run_backwards(keys, eps, log_tilt(model, params), schedule)


@functools.partial(jax.jit, static_argnums=(1, 5, 6))
def _tune(key, model, params, x, above, num_temperatures, start):
    given = (x, above)
    groups = jax.tree.leaves(given)[0].shape[0] if jax.tree.leaves(given) else 1
    pilots = -(-_PILOTS // groups)
    keys = example_keys(key, jnp.arange(groups * pilots))
    given = jax.tree.map(lambda a: jnp.repeat(a, pilots, axis=0), given)
    eps = start_positions(keys, model, params, ANCESTRAL, above=given[1])
    g = _given(model, params, start)
    return annealing.tune(keys, eps, g, num_temperatures, *given, groups=groups)
