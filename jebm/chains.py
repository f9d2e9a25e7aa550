"""Runs the chains of a model: where they start, how they move, where they end.

    prior chain       log N(eps) - E(T(eps))
    posterior chain   log N(eps) - E(T(eps)) + log p(x | T(eps))

or the same laws in z-space, where the joint chains of arXiv 2306.06323 move. Each
example runs its own chain from its own key, so a draw depends on the example's key
alone, not on the batch or the device it sits in.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jebm import langevin
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
from jebm.kernels import ANCESTRAL, ENCODED, Chain
from jebm.model import Model, Params, float_dtype


class ChainEnd(NamedTuple):
    """The ends of chains."""

    latents: Latents  # z, bottom to top, each [B, *shape_i]
    position: Latents  # the same in the chain's space, of the layers that moved
    info: Any  # of the kernel, averaged over the steps, fields [B]
    state: Any  # that `hierarchy.top_down` reaches at z; None for a chain in z-space


def example_keys(key: jax.Array, index: jax.Array) -> jax.Array:
    """Makes one key per example, from the examples' global indices [B]."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def draw_noise(
    keys: jax.Array, model: Model, params: Params, layers: int | None = None
) -> Latents:
    """Draws standard normal noise of the shapes of the latents, from keys [B].

    With `layers` it draws for that many of the lowest layers alone.
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
    tilt: jax.typing.ArrayLike = 1.0,
    likelihood_weight: jax.typing.ArrayLike = 1.0,
    num_steps: jax.Array | None = None,
) -> ChainEnd:
    """Runs one chain per key: of the posterior given `x`, else of the tilted prior.

    Args:
      keys: typed keys, [B].
      model: the model.
      params: its parameters.
      chain: the kernel, steps, step size, space and start.
      x: images [B, H, W, C] in [0, 1], or None.
      start: positions in the chain's space, each [B, *shape_i]; None for those of
        `start_positions`.
      above: z_{>k} to keep, each [B, *shape_i]; the chain then moves the k layers below
        by the conditional law given these.
      temperature: scales every sigma_i of the hierarchy.
      tilt: multiplies the energy: at 0 the chain's law is that of the Gaussian prior.
      likelihood_weight: multiplies log p(x|z): at 0 the law is that of the prior.
      num_steps: an array [] for those of a chain with steps, where another number is
        not to compile anew; None for the chain's own.

    Returns:
      The `ChainEnd`. Chains without steps that start at an encoder pass the hierarchy
      once, others once after their last step.
    """
    reached = None
    if start is None:
        start, reached = _start(keys, model, params, chain, x, temperature, above)

    def one(key, position, logdensity_fn):
        state, info = run_one(key, chain, position, logdensity_fn, num_steps)
        return state.position, info

    if chain.num_steps:
        weights = {"tilt": tilt, "likelihood_weight": likelihood_weight}
        position, info = vmap_chains(
            one, keys, model, params, chain, x, temperature, above, start, **weights
        )
    else:  # no density need be traced
        zeros = jnp.zeros_like(start[0], shape=keys.shape)
        position, info = start, langevin.LangevinInfo(zeros, zeros, zeros)
    if reached is None or chain.num_steps:
        reached = reach(model, params, position, chain.space, temperature, above)
    latents, state = reached
    return ChainEnd(latents, position, info, state)


def run_one(
    key: jax.Array,
    chain: Chain,
    position: Any,
    logdensity_fn: langevin.LogDensity,
    num_steps: jax.Array | None = None,
) -> tuple[Any, Any]:
    """Runs one chain by its own kernel and steps; returns as `langevin.run`."""
    return langevin.run(
        key,
        position,
        logdensity_fn,
        num_steps=chain.num_steps if num_steps is None else num_steps,
        step_size=chain.step_size,
        kernel=chain.kernel,
    )


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
) -> Latents:
    """Traces the latents of `run_chains` at steps 0, every, ..., num_steps.

    Returns:
      [T, B, *shape_i] per layer.

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
            kernel=chain.kernel,
        )
        return path

    paths = vmap_chains(one, keys, model, params, chain, x, temperature, above)

    def latents(position):
        return to_latents(model, params, position, chain.space, temperature, above)

    # One time after the other: together they are more than a deep hierarchy's memory.
    return jax.lax.map(latents, jax.tree.map(lambda z: jnp.swapaxes(z, 0, 1), paths))


def vmap_chains(
    body: Callable,
    keys,
    model,
    params,
    chain,
    x,
    temperature,
    above=(),
    start=None,
    **weights,
):
    """Maps `body(key, position, logdensity_fn)` over chains, from where each starts.

    `weights` are those of the terms of `densities.logdensity`.
    """
    if start is None:
        start = start_positions(keys, model, params, chain, x, temperature, above)

    def one(key, position, image, above):
        logdensity_fn = one_chain(
            model, params, chain.space, image, temperature, above, **weights
        )
        return body(jax.random.fold_in(key, _CHAIN), position, logdensity_fn)

    return jax.vmap(one)(keys, start, x, above)


def prior_chain(model: Model) -> Chain:
    """Returns the chain of the model's prior, one without steps if it has no energy."""
    return ANCESTRAL if model.energy is None else model.chains.prior


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
    """Draws where `chain` starts, in its own space, one position per key [B]."""
    return _start(keys, model, params, chain, x, temperature, above)[0]


def _start(keys, model, params, chain, x, temperature, above):
    """Returns where `chain` starts and, if known without a pass, latents and state."""
    moving = len(model.backbone.latent_shapes) - len(above)
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, _START)
    if chain.start in ENCODED:
        noise = draw_noise(keys, model, params)
        if chain.start == "mode":
            noise = jax.tree.map(jnp.zeros_like, noise)
        latents, priors, state = encode(model, params, x, noise)
        position = latents if chain.space == "z" else inverse_transport(latents, priors)
        return position[:moving], None if above else (latents, state)
    eps = draw_noise(keys, model, params, moving)
    if chain.space == "z" and chain.start == "prior":
        eps = to_latents(model, params, eps, "eps", temperature, above)[:moving]
    return eps, None


def encode(
    model: Model, params: Params, x: jax.Array, noise: Latents
) -> tuple[Latents, tuple[Normal, ...], Any]:
    """Transports standard normal noise to z ~ q(z | x), in one pass.

    Returns:
      latents, and the priors and the state of `hierarchy.top_down` at these.
    """

    def inferred(backbone):
        latents, _, priors, state = infer(backbone, x, noise)
        return latents, priors, state

    return nn.apply(inferred, model.backbone)(params.backbone)


def reach(
    model: Model,
    params: Params,
    position: Latents,
    space: str,
    temperature: jax.typing.ArrayLike = 1.0,
    above: Latents = (),
) -> tuple[Latents, Any]:
    """Returns z of a chain's position, and the state to decode from.

    That is T(eps) in eps-space, and the position itself in z-space, where no pass is
    taken and the state is None. With z_{>k} given as `above`, the position is of the k
    layers below.
    """
    if space == "z":
        return (*position, *above), None

    def transported(backbone):
        pick = keep_above(above, len(position), transport(position))
        batch = position[0].shape[0]
        latents, _, state = top_down(backbone, batch, pick, temperature)
        return latents, state

    return nn.apply(transported, model.backbone)(params.backbone)


def to_latents(
    model: Model,
    params: Params,
    position: Latents,
    space: str,
    temperature: jax.typing.ArrayLike = 1.0,
    above: Latents = (),
) -> Latents:
    """Returns the z of `reach` alone."""
    return reach(model, params, position, space, temperature, above)[0]


def to_eps(model: Model, params: Params, latents: Latents) -> Latents:
    """Returns the noise eps of z = T(eps)."""
    return inverse_transport(latents, priors_at(model, params, latents))


def end_eps(
    model: Model, params: Params, chain: Chain, latents: Latents, position: Latents
) -> Latents:
    """Returns the noise eps of z = T(eps) where `chain` has ended at these."""
    return to_eps(model, params, latents) if chain.space == "z" else position


def priors_at(model: Model, params: Params, latents: Latents) -> tuple[Normal, ...]:
    """Returns p_beta(z_i | z_{>i}) of each layer at `latents`, bottom to top."""

    def priors(backbone):
        return top_down(backbone, latents[0].shape[0], given(latents))[1]

    return nn.apply(priors, model.backbone)(params.backbone)


def decode(
    model: Model, params: Params, latents: Latents, state: Any = None
) -> jax.Array:
    """Returns E[x | z], [B, H, W, C] in [0, 1].

    `state` is that of `hierarchy.top_down` at `latents`, for a caller that has it;
    where None, the pass is taken here.
    """

    def output(backbone):
        reached = state
        if reached is None:
            _, _, reached = top_down(backbone, latents[0].shape[0], given(latents))
        return backbone.decode(reached)

    return model.likelihood.mean(nn.apply(output, model.backbone)(params.backbone))


def override(chain: Chain, num_steps: int | None, step_size: Any) -> Chain:
    """Returns `chain` with other steps or another step size, where they are given."""
    changes = {"num_steps": num_steps, "step_size": step_size}
    changes = {name: value for name, value in changes.items() if value is not None}
    return dataclasses.replace(chain, **changes)
