"""Short-run Langevin sampling of the tilted prior and of the posterior.

    prior chain       log N(eps) - E(T(eps))
    posterior chain   log N(eps) - E(T(eps)) + log p(x | T(eps))

or the same laws in z-space, where the joint chains of arXiv 2306.06323 move. Each
example runs its own chain from its own key, so a draw depends on the example's key
alone, not on the batch or the device it sits in.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jebm import checks, langevin, tempering
from jebm.densities import one_chain
from jebm.distributions import Normal
from jebm.hierarchy import (
    Latents,
    given,
    infer,
    inverse_transport,
    keep_above,
    top_down,
    transport,
)
from jebm.langevin import Kernel, LangevinInfo
from jebm.model import (
    ENCODED,
    STARTS,
    Chain,
    Chains,
    Model,
    Params,
    check_chains,
    float_dtype,
)

SAMPLERS = ("langevin", "tempered")


class Samples(NamedTuple):
    """Images and the latents they were decoded from."""

    x: jax.Array  # [N, H, W, C] in [0, 1], the decoder's mean
    latents: Latents  # z, bottom to top, each [N, *shape_i]


def example_keys(key: jax.Array, index: jax.Array) -> jax.Array:
    """One key per example, from the examples' global indices [B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def draw_noise(
    keys: jax.Array, model: Model, params: Params, layers: int | None = None
) -> Latents:
    """Standard normal noise of the shapes of the latents, from keys [B].

    Of the lowest `layers` alone, where given.
    """
    shapes, dtype = model.backbone.latent_shapes[:layers], float_dtype(params)
    zeros = tuple(jnp.zeros(shape, dtype) for shape in shapes)
    return jax.vmap(langevin.normal_like, in_axes=(0, None))(keys, zeros)


def run_chains(
    keys: jax.Array,
    model: Model,
    params: Params,
    chain: Chain,
    *,
    x: jax.Array | None = None,
    start: Latents | None = None,
    above: Latents = (),
    temperature: jax.typing.ArrayLike = 1.0,
    kernel: Kernel = langevin.LANGEVIN,
) -> tuple[Latents, LangevinInfo]:
    """Runs one chain per key: of the posterior given `x`, else of the tilted prior.

    Args:
      keys: typed keys, [B].
      model: the model.
      params: its parameters.
      chain: steps, step size, space and start.
      x: images [B, H, W, C] in [0, 1], or None.
      start: positions in the chain's space, each [B, *shape_i]; None for those of
        `start_positions`.
      above: z_{>k} to keep, each [B, *shape_i]; the chain then moves the k layers below
        by the conditional law given these.
      temperature: scales every sigma_i of the hierarchy.
      kernel: `langevin.LANGEVIN`, `mala.MALA` or one of `tempering.tempered`.

    Returns:
      latents z, each [B, *shape_i], and the info averaged over the steps, fields [B].
    """

    def one(key, position, logdensity_fn):
        state, info = langevin.run(
            key,
            position,
            logdensity_fn,
            num_steps=chain.num_steps,
            step_size=chain.step_size,
            kernel=kernel,
        )
        return state.position, info

    position, info = vmap_chains(
        one, keys, model, params, chain, x, temperature, above, start
    )
    latents = to_latents(model, params, position, chain.space, temperature, above)
    return latents, info


def trace_chains(
    keys: jax.Array,
    model: Model,
    params: Params,
    chain: Chain,
    *,
    every: int,
    x: jax.Array | None = None,
    above: Latents = (),
    temperature: jax.typing.ArrayLike = 1.0,
    kernel: Kernel = langevin.LANGEVIN,
) -> Latents:
    """The latents of `run_chains` at steps 0, every, ..., num_steps: [T, B, *shape_i].

    Raises:
      ValueError: if `every` does not divide `chain.num_steps`.
    """

    def one(key, position, logdensity_fn):
        _, _, path = langevin.trajectory(
            key,
            position,
            logdensity_fn,
            num_steps=chain.num_steps,
            every=every,
            step_size=chain.step_size,
            kernel=kernel,
        )
        return path

    paths = vmap_chains(one, keys, model, params, chain, x, temperature, above)

    def latents(position):
        return to_latents(model, params, position, chain.space, temperature, above)

    # One time after the other: together they are more than a deep hierarchy's memory.
    return jax.lax.map(latents, jax.tree.map(lambda z: jnp.swapaxes(z, 0, 1), paths))


def vmap_chains(
    body: Callable, keys, model, params, chain, x, temperature, above=(), start=None
):
    """Maps `body(key, position, logdensity_fn)` over chains, from where each starts."""
    if start is None:
        start = start_positions(keys, model, params, chain, x, temperature, above)

    def one(key, position, image, above):
        logdensity_fn = one_chain(model, params, chain.space, image, temperature, above)
        return body(jax.random.fold_in(key, _CHAIN), position, logdensity_fn)

    return jax.vmap(one)(keys, start, x, above)


# A draw of p_beta itself: transported noise.
UNTILTED = Chain(num_steps=0, space="eps")


def prior_chain(model: Model) -> Chain:
    """The chain of the model's prior, with no steps where there is no energy."""
    return UNTILTED if model.energy is None else model.chains.prior


# What the key of an example is folded with, so that start and steps differ.
_START, _CHAIN = 0, 1


def start_positions(
    keys: jax.Array,
    model: Model,
    params: Params,
    chain: Chain,
    x: jax.Array | None = None,
    temperature: jax.typing.ArrayLike = 1.0,
    above: Latents = (),
) -> Latents:
    """Where `chain` starts, in its own space, one position per key [B]."""
    moving = len(model.backbone.latent_shapes) - len(above)
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, _START)
    if chain.start in ENCODED:
        noise = draw_noise(keys, model, params)
        if chain.start == "mode":
            noise = jax.tree.map(jnp.zeros_like, noise)

        def draw(backbone):
            return infer(backbone, x, noise)[0]

        latents = nn.apply(draw, model.backbone)(params.backbone)
        return to_positions(model, params, latents, chain.space)[:moving]
    eps = draw_noise(keys, model, params, moving)
    if chain.space == "z" and chain.start == "prior":
        return to_latents(model, params, eps, "eps", temperature, above)[:moving]
    return eps


def to_latents(
    model: Model,
    params: Params,
    position: Latents,
    space: str,
    temperature: jax.typing.ArrayLike = 1.0,
    above: Latents = (),
) -> Latents:
    """z of a chain's position: T(eps) in eps-space, the position itself in z-space.

    With z_{>k} given as `above`, the position is of the k layers below.
    """
    if space == "z":
        return (*position, *above)

    def transported(backbone):
        pick = keep_above(above, len(position), transport(position))
        return top_down(backbone, position[0].shape[0], pick, temperature)[0]

    return nn.apply(transported, model.backbone)(params.backbone)


def to_positions(model: Model, params: Params, latents: Latents, space: str) -> Latents:
    """The position of a chain in `space` at z, the inverse of `to_latents`."""
    return latents if space == "z" else to_eps(model, params, latents)


def to_eps(model: Model, params: Params, latents: Latents) -> Latents:
    """The noise eps of z = T(eps)."""
    return inverse_transport(latents, priors_at(model, params, latents))


def priors_at(model: Model, params: Params, latents: Latents) -> tuple[Normal, ...]:
    """p_beta(z_i | z_{>i}) of each layer at `latents`, bottom to top."""

    def priors(backbone):
        return top_down(backbone, latents[0].shape[0], given(latents))[1]

    return nn.apply(priors, model.backbone)(params.backbone)


def decode(model: Model, params: Params, latents: Latents) -> jax.Array:
    """E[x | z], [B, H, W, C] in [0, 1]."""

    def output(backbone):
        _, _, state = top_down(backbone, latents[0].shape[0], given(latents))
        return backbone.decode(state)

    return model.likelihood.mean(nn.apply(output, model.backbone)(params.backbone))


def sample(
    key: jax.Array,
    model: Model,
    params: Params,
    num_samples: int,
    *,
    prior: str = "ebm",
    num_steps: int | None = None,
    step_size: jax.typing.ArrayLike | None = None,
    temperature: jax.typing.ArrayLike = 1.0,
    above: Latents = (),
    sampler: str = "langevin",
    inverse_temperatures: jax.typing.ArrayLike | None = None,
) -> Samples:
    """Draws images from the model.

    Args:
      key: typed key, []. Example n draws from `fold_in(key, n)`.
      model: the model.
      params: its parameters.
      num_samples: N.
      prior: "ebm" for the tilted prior, by a Langevin chain; "gaussian" for the
        hierarchy p_beta alone, exactly. For a model without energy the two are one.
      num_steps: of the chain; None for the model's own. Each new value compiles anew.
      step_size: of the chain; None for the model's own.
      temperature: scales every sigma_i of the hierarchy, for both priors.
      above: z_{>k}, the top layers' latents, bottom to top, each [N, *shape_i]: these
        are kept and the k >= 1 layers below are drawn given them. () draws all.
      sampler: "langevin" for the model's chain; "tempered" for the same steps in
        `jebm.tempering`, which mixes where one chain does not. Each of its steps costs
        one gradient per inverse temperature; it moves in eps-space whatever the model's
        chain does.
      inverse_temperatures: of "tempered", [R], rising from 0 to 1; None for
        `tempering.ladder()`.

    Returns:
      Samples: x [N, H, W, C] in [0, 1], the decoder's mean, and the latents z.

    Raises:
      ValueError: for an argument out of range, or params that do not fit the model.

    Example:
      >>> import jebm
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> params = jebm.init(jax.random.key(0), model)
      >>> sample(jax.random.key(1), model, params, 4).x.shape
      (4, 8, 8, 1)
    """
    checks.key(key)
    checks.params(model, params)
    checks.positive_int("num_samples", num_samples)
    checks.one_of("prior", prior, ("ebm", "gaussian"))
    checks.one_of("sampler", sampler, SAMPLERS)
    checks.temperature(temperature)
    checks.above(model, above, num_samples)
    chain = _override(model.chains.prior, num_steps, step_size)
    if sampler == "tempered":
        chain = tempering.in_eps_space(chain)
        if inverse_temperatures is None:
            inverse_temperatures = tempering.ladder()
        checks.inverse_temperatures(inverse_temperatures)
        inverse_temperatures = jnp.asarray(inverse_temperatures, float_dtype(params))
    elif inverse_temperatures is not None:
        raise ValueError(
            "inverse_temperatures belong to sampler='tempered', "
            f"and the sampler is {sampler!r}"
        )
    if prior == "gaussian" or model.energy is None:
        chain, inverse_temperatures = UNTILTED, None
    keys = example_keys(key, jnp.arange(num_samples))
    return _sample(
        keys, model, params, *_split(chain), temperature, tuple(above),
        inverse_temperatures,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=3)
def _sample(
    keys, model, params, static, step_size, temperature, above, inverse_temperatures
):
    chain, kernel = _join(static, step_size), langevin.LANGEVIN
    if inverse_temperatures is not None:
        kernel = tempering.tempered(inverse_temperatures)
    latents, _ = run_chains(
        keys, model, params, chain, above=above, temperature=temperature, kernel=kernel
    )
    return Samples(decode(model, params, latents), latents)


def posterior_sample(
    key: jax.Array,
    model: Model,
    params: Params,
    x: jax.Array,
    *,
    num_steps: int | None = None,
    step_size: jax.typing.ArrayLike | None = None,
    start: str | None = None,
) -> Latents:
    """Draws latents of p(z | x): by a Langevin chain, an encoder, or one after other.

    Args:
      key: typed key, []. Example n draws from `fold_in(key, n)`.
      model: the model.
      params: its parameters.
      x: images [N, H, W, C], floating-point in [0, 1].
      num_steps: of the chain; None for the model's own. Each new value compiles anew.
      step_size: of the chain; None for the model's own.
      start: of the chain, see `Chain`; None for the model's own. With `num_steps=0`
        the draw is the encoder's at "encoder", and its mode at "mode".

    Returns:
      latents z, bottom to top, each [N, *shape_i].

    Raises:
      ValueError: for an argument out of range, images of another shape, dtype or
        range, or params that do not fit the model.

    Example:
      >>> import jebm
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> params = jebm.init(jax.random.key(0), model)
      >>> x = jnp.full((3, 8, 8, 1), 0.5)
      >>> [z.shape for z in posterior_sample(jax.random.key(1), model, params, x)]
      [(3, 16), (3, 8)]
    """
    checks.key(key)
    checks.params(model, params)
    checks.images(model, x)
    chain = _override(model.chains.posterior, num_steps, step_size)
    if start is not None:
        checks.one_of("start", start, STARTS)
        chain = dataclasses.replace(chain, start=start)
        check_chains(model.backbone, Chains(model.chains.prior, chain))
    keys = example_keys(key, jnp.arange(x.shape[0]))
    return _posterior_sample(keys, model, params, x, *_split(chain))


@functools.partial(jax.jit, static_argnums=4)
def _posterior_sample(keys, model, params, x, static, step_size):
    x = x.astype(float_dtype(params))
    return run_chains(keys, model, params, _join(static, step_size), x=x)[0]


def reconstruct(
    key: jax.Array,
    model: Model,
    params: Params,
    x: jax.Array,
    *,
    num_steps: int | None = None,
    step_size: jax.typing.ArrayLike | None = None,
    start: str | None = None,
) -> jax.Array:
    """Decodes `posterior_sample(...)`; arguments and errors are its own.

    Returns:
      [N, H, W, C] in [0, 1], the decoder's mean.

    Example:
      >>> import jebm
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> params = jebm.init(jax.random.key(0), model)
      >>> reconstruct(jax.random.key(1), model, params, jnp.ones((3, 8, 8, 1))).shape
      (3, 8, 8, 1)
    """
    latents = posterior_sample(
        key, model, params, x, num_steps=num_steps, step_size=step_size, start=start
    )
    return _decode(model, params, latents)


_decode = jax.jit(decode)


def _override(chain: Chain, num_steps, step_size) -> Chain:
    if num_steps is not None:
        langevin.check_num_steps(num_steps)
        chain = dataclasses.replace(chain, num_steps=num_steps)
    if step_size is not None:
        checks.step_size(step_size)
        chain = dataclasses.replace(chain, step_size=step_size)
    return chain


# A step size is data (a new one must not compile anew), the rest of a chain is static.
def _split(chain: Chain):
    return dataclasses.replace(chain, step_size=1.0), chain.step_size


def _join(static: Chain, step_size) -> Chain:
    return dataclasses.replace(static, step_size=step_size)
