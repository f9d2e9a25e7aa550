"""Log-normalisers by annealed importance sampling in eps-space.

    pi_b(eps) = N(eps; 0, I) exp(b g(eps)),      b from 0 to 1
    g = -E(T(eps))                      its normaliser at b = 1 is Z
    g = -E(T(eps)) + log p(x|T(eps))    Z_x = Z p(x), so log p(x) = log Z_x - log Z
    g = -E(z) + log[p(x|z) p_beta(z) / q(z|x)]    the same Z_x, and eps the noise that
                                        an encoder transports to z: from q at b = 0

A particle starts at N(0, I) and takes one MALA step at each b_t. Its weight
w = prod_t exp[(b_t - b_{t-1}) g(eps_{t-1})] has the normaliser as its mean, so that the
log of a mean of weights lies below log Z in expectation. Backwards, from exact samples
of pi_1, the mean of 1/w is 1/Z and the estimate lies above.
(arXiv physics/9803008; both ways: arXiv 1511.02543)

log p(x) is a difference of two estimates and bounds nothing: read it with its error.

The error is that of the weights at hand. It says nothing of a mode of pi_1 that no
particle has found: hold log Z against an estimate backwards from samples of the model
(`check_log_z`), and weights of an encoder against the shape of their tail (`pareto_k`).
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jebm import checks, mala, types
from jebm.chains import encode, example_keys, start_positions, to_eps
from jebm.densities import one_chain
from jebm.hierarchy import Latents, has_encoder, inverse_transport
from jebm.kernels import ANCESTRAL
from jebm.model import Model, Params, float_dtype
from jebm.tempering import log_reference

FEWEST_WEIGHTS = 25  # that `pareto_k` takes: a tail of five


class Schedule(NamedTuple):
    """The path from N(0, I) to the target."""

    inverse_temperatures: jax.Array  # b, [T + 1], from 0 to 1
    step_sizes: jax.Array  # of the MALA step at each b but the first, [T]


class Estimate(NamedTuple):
    """A log-normaliser, in nats, and how far to trust it.

    The standard error covers the spread of the weights at hand, no more. It does not
    cover

      - modes that no particle has found: all weights may agree and miss most of Z;
      - the bias of the log of a mean, which lies below by about half the error squared;
      - heavy tails: where effective samples are few, the largest weight is yet to come,
        and value and error are both too small.

    `check_log_z` looks for the first, `pareto_k` for the last.
    """

    value: jax.Array
    standard_error: jax.Array  # of `value`, from the spread of the weights
    effective_samples: jax.Array  # (sum w)^2 / sum w^2, at most the number of particles


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
    num_temperatures: int = 500,
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
      num_temperatures: MALA steps of each particle.
      schedule: of `tune`; None to tune one here, on particles of their own.

    Returns:
      An `Estimate` of fields [], nats. With `num_temperatures` it becomes exact, with
      `num_particles` its error becomes known.

    Raises:
      ValueError: for an argument out of range, or params that do not fit the model.

    Example:
      >>> import jebm
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> params = jebm.init(jax.random.key(0), model)  # E = 0, so log Z = 0
      >>> result = log_z(jax.random.key(1), model, params, num_particles=8,
      ...               num_temperatures=4)
      >>> result.value.item(), result.effective_samples.item()
      (0.0, 8.0)
    """
    return _estimate(key, model, params, None, (), num_particles, num_temperatures,
                     schedule)  # fmt: skip


def log_z_given(
    key: types.Key,
    model: Model,
    params: Params,
    above: types.Latents,
    *,
    num_particles: int = 100,
    num_temperatures: int = 500,
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
    if not above:
        raise ValueError("above must hold the latents of at least the top layer")
    checks.above(model, above, above[0].shape[0])
    return _estimate(key, model, params, None, tuple(above), num_particles,
                     num_temperatures, schedule)  # fmt: skip


def log_likelihood(
    key: types.Key,
    model: Model,
    params: Params,
    x: types.Images,
    *,
    log_z: jax.typing.ArrayLike,
    start: str = "prior",
    num_particles: int = 16,
    num_temperatures: int = 1000,
    schedule: Schedule | None = None,
) -> Estimate:
    """Estimates log p(x) = log Z_x - log Z of each image, a density on [0, 1].

    Args:
      key, model, params, num_particles, num_temperatures, schedule: as of `log_z`.
      x: images [N, H, W, C], floating-point in [0, 1]; all particles of all of them
        are in memory at once.
      log_z: log Z, the value that `log_z` found, whose error is not in the result's.
      start: "prior", or "encoder" for a path from q(z|x), which is shorter: with one
        temperature it is importance sampling by q, with more it corrects what q lacks.

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
    result = _estimate(key, model, params, x, (), num_particles, num_temperatures,
                       schedule, start)  # fmt: skip
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
    num_temperatures: int = 500,
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
    _check(key, model, params, num_temperatures=num_temperatures)
    checks.latents(model, latents)
    if schedule is None:  # the one that `log_z` would tune
        key_tune, _ = jax.random.split(key)
        schedule = tune(key_tune, model, params, num_temperatures=num_temperatures)
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
    num_temperatures: int = 500,
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


def estimate(log_weights: jax.Array) -> Estimate:
    """Takes the log of the mean weight, over the last axis.

    The standard error is the weights' own over their mean (the delta method). It covers
    neither modes that no sample has found, nor the bias of the log of a mean, and is
    too small where the effective samples are few: see `Estimate`. Where `pareto_k` of
    the same weights is above .7, do not trust it.

    Args:
      log_weights: log w, [..., N].

    Returns:
      An `Estimate` of fields [...], nats. One weight has an infinite error.

    Example:
      >>> result = estimate(jnp.log(jnp.array([1.0, 3.0])))
      >>> [round(float(value), 4) for value in result]
      [0.6931, 0.5, 1.6]
    """
    num = log_weights.shape[-1]
    value = jax.nn.logsumexp(log_weights, axis=-1) - jnp.log(num)
    relative = jnp.exp(log_weights - value[..., None])  # of mean 1
    error = jnp.std(relative, axis=-1, ddof=1) / num**0.5 if num > 1 else jnp.inf
    return Estimate(value, error + 0 * value, num / jnp.mean(relative**2, axis=-1))


def pareto_k(log_weights: jax.Array) -> jax.Array:
    """Estimates the Pareto shape k of the weights' upper tail, over the last axis.

    Weights with a tail of shape k have moments below 1 / k alone: from k = 1/2 on no
    variance, from 1 on no mean. Above .7, and of N < 2,200 weights above
    1 - 1 / log10(N), neither their mean nor its standard error can be trusted. Of 1,000
    Pareto weights, an interval of two errors holds the log of the mean in 92% at
    k = .5, in 74% at .7 and in 32% at .9, at some 450, 140 and 40 effective samples. A
    low k does not tell of modes that no sample has found.

    The estimator fits a generalised Pareto law to the min(N / 5, 3 sqrt(N)) largest
    weights, less the next one: it averages theta = -k / sigma over a grid, weighed by
    the profile likelihood (Zhang and Stephens 2009, Technometrics 51, 316), and draws k
    to 1/2 as by ten more weights (arXiv 1507.02646).

    Args:
      log_weights: log w, [..., N], up to a constant.

    Returns:
      k, [...]. -inf where the largest weights are all equal, nan where the largest is
      not finite.

    Raises:
      ValueError: for fewer than 25 weights, whose tail is less than five.

    Example:
      >>> u = jnp.linspace(0.0005, 0.9995, 1000)
      >>> log_w = -0.7 * jnp.log(u)  # of a Pareto law of k = .7
      >>> round(pareto_k(log_w).item(), 1)
      0.7
    """
    num = log_weights.shape[-1] if log_weights.ndim else 0
    if num < FEWEST_WEIGHTS:
        raise ValueError(
            f"log_weights must hold at least {FEWEST_WEIGHTS} weights on its last "
            f"axis, got shape {log_weights.shape}"
        )
    return _pareto_k(log_weights)


_TUNED_ON = 8  # images, or latents above
_PILOTS = 64  # particles of `tune`, over all of these
ADAPTED_TO = 0.574  # arXiv math/0108030
_GAIN = 0.2  # log step sizes per unit of acceptance, at each temperature
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


def _estimate(
    key, model, params, x, above, num_particles, num_temperatures, schedule,
    start="prior",
):  # fmt: skip
    _check(
        key,
        model,
        params,
        num_particles=num_particles,
        num_temperatures=num_temperatures,
    )
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


@jax.jit
@functools.partial(jnp.vectorize, signature="(n)->()")
def _pareto_k(log_weights):
    num = log_weights.shape[0]
    num_tail = int(min(num / 5, 3 * num**0.5))
    largest = jnp.flip(jax.lax.top_k(log_weights, num_tail + 1)[0])
    weights = jnp.exp(largest - largest[-1])
    k = _pareto_shape(weights[1:] - weights[0])
    return jnp.where(jnp.isfinite(log_weights.max()), k, jnp.nan)


def _pareto_shape(x):
    """Fits k of a generalised Pareto law to rising x >= 0, [M]; Zhang and Stephens."""
    num, small = len(x), float(jnp.finfo(x.dtype).tiny) ** 0.5
    num_grid, top = 30 + math.isqrt(num), x[-1]
    x = x / jnp.where(top > 0, top, 1)  # the shape does not depend on the scale
    # A floor, for lower quartiles too small to divide by.
    quartile = jnp.maximum(x[int(num / 4 + 0.5) - 1], small)
    grid = jnp.arange(1, num_grid + 1, dtype=x.dtype) - 0.5
    theta = 1 + (1 - jnp.sqrt(num_grid / grid)) / (3 * quartile)
    theta = jnp.where(theta == 0, small, theta)  # an exponential law, as a limit
    minus_k = -jnp.log1p(-theta[:, None] * x[None]).mean(axis=1)
    log_likelihood = num * (jnp.log(theta / minus_k) + minus_k - 1)
    mean = (jax.nn.softmax(log_likelihood) * theta).sum()
    k = jnp.log1p(-mean * x).mean()
    k = (num * k + _PRIOR_WEIGHTS * 0.5) / (num + _PRIOR_WEIGHTS)
    return jnp.where(top > 0, k, -jnp.inf)


_PRIOR_WEIGHTS = 10  # that k = 1/2 counts for


def _target(model, params, x, above, start):
    """Returns g of one position, [], for `x` and `above` of one example."""
    x = None if x is None else x.astype(float_dtype(params))
    space = "encoder" if start == "encoder" else "eps"
    logdensity_fn = one_chain(model, params, space, x, 1.0, above)
    return lambda eps: logdensity_fn(eps) - log_reference(eps)


def log_tilt(model: Model, params: Params) -> Callable[[Latents], jax.Array]:
    """Returns g of the prior: one position in eps-space -> [], nats."""
    return _target(model, params, None, (), "prior")


def tempered(
    g: Callable[[Latents], jax.Array], b: jax.typing.ArrayLike
) -> Callable[[Latents], jax.Array]:
    """Returns log pi_b of one position, up to its normaliser."""

    def value(eps):
        return log_reference(eps) + b * g(eps)

    return value


def _move(key, t, eps, g, b, step_size):
    """Takes a MALA step at b, the t-th of a particle, and returns its acceptance."""
    fn = tempered(g, b)
    state, info = mala.MALA.step(
        jax.random.fold_in(key, t + 1), mala.init(eps, fn), fn, step_size
    )
    return state.position, info.acceptance_rate


@functools.partial(jax.jit, static_argnums=(1, 6))
def _particles(keys, model, params, x, above, schedule, start):
    b, step_sizes = schedule

    def one(key, eps, x, above):
        g = _target(model, params, x, above, start)

        def body(carry, inputs):
            eps, log_w = carry
            t, before, after, step_size = inputs
            log_w += (after - before) * g(eps)
            return (_move(key, t, eps, g, after, step_size)[0], log_w), None

        zero = jnp.zeros((), float_dtype(params))
        steps = (jnp.arange(len(step_sizes)), b[:-1], b[1:], step_sizes)
        return jax.lax.scan(body, (eps, zero), steps)[0]

    eps = start_positions(keys, model, params, ANCESTRAL, above=above)
    return jax.vmap(one)(keys, eps, x, above)


@functools.partial(jax.jit, static_argnums=1)
def _reverse_log_weights(keys, model, params, latents, schedule):
    """Computes log 1/w of one particle per key, from the latents at its end."""
    b, step_sizes = schedule
    g = _target(model, params, None, (), "prior")

    def one(key, eps):
        def body(carry, inputs):
            eps, log_w = carry
            t, before, after, step_size = inputs
            eps = _move(key, t, eps, g, after, step_size)[0]
            return (eps, log_w - (after - before) * g(eps)), None

        zero = jnp.zeros((), float_dtype(params))
        steps = (jnp.arange(len(step_sizes)), b[:-1], b[1:], step_sizes)
        return jax.lax.scan(body, (eps, zero), steps, reverse=True)[0][1]

    return jax.vmap(one)(keys, to_eps(model, params, latents))


@functools.partial(jax.jit, static_argnums=(1, 5, 6))
def _tune(key, model, params, x, above, num_temperatures, start):
    given = (x, above)
    groups = jax.tree.leaves(given)[0].shape[0] if jax.tree.leaves(given) else 1
    pilots = -(-_PILOTS // groups)
    keys = example_keys(key, jnp.arange(groups * pilots))
    given = jax.tree.map(lambda a: jnp.repeat(a, pilots, axis=0), given)
    dtype = float_dtype(params)
    # Dense where g is not yet known to be large.
    b = jnp.linspace(0, 1, num_temperatures + 1, dtype=dtype) ** 3

    def values(eps):
        def one(eps, x, above):
            return _target(model, params, x, above, start)(eps)

        return jax.vmap(one)(eps, *given)

    def moves(t, eps, b, step_size):
        def one(key, eps, x, above):
            g = _target(model, params, x, above, start)
            return _move(key, t, eps, g, b, step_size)

        return jax.vmap(one)(keys, eps, *given)

    def body(carry, inputs):
        eps, log_step = carry
        t, b = inputs
        eps, acceptance = moves(t, eps, b, jnp.exp(log_step))
        log_step += _GAIN * (acceptance.mean() - ADAPTED_TO)
        log_step = jnp.minimum(log_step, 0.0)
        # Of one image: that of another may have another mean.
        spread = values(eps).reshape(groups, pilots).std(axis=1).mean()
        return (eps, log_step), (log_step, spread)

    eps = start_positions(keys, model, params, ANCESTRAL, above=given[1])
    spread = values(eps).reshape(groups, pilots).std(axis=1).mean()
    inputs = (jnp.arange(num_temperatures), b[1:])
    _, (log_steps, spreads) = jax.lax.scan(body, (eps, jnp.zeros((), dtype)), inputs)
    return even_schedule(b, log_steps, jnp.concatenate([spread[None], spreads]))


def even_schedule(b: jax.Array, log_steps: jax.Array, spreads: jax.Array) -> Schedule:
    """Chooses as many b that lie even in thermodynamic length, and their steps.

    Args:
      b: inverse temperatures that were tried, from 0 to 1, [T + 1].
      log_steps: log s that suited each but the first, [T].
      spreads: standard deviation of g at each, [T + 1].
    """
    # A floor, so that b moves where g does not vary at all.
    spreads = jnp.maximum(spreads, 1e-3 * jnp.maximum(spreads.max(), 1e-6))
    length = jnp.cumsum(0.5 * (spreads[1:] + spreads[:-1]) * jnp.diff(b))
    length = jnp.concatenate([jnp.zeros((1,), b.dtype), length / length[-1]])
    even = jnp.linspace(0, 1, len(b), dtype=b.dtype)
    chosen = jnp.interp(even, length, b).at[0].set(0).at[-1].set(1)
    return Schedule(chosen, jnp.exp(jnp.interp(chosen[1:], b[1:], log_steps)))
