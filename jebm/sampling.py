"""Samples of the tilted prior and of the posterior: what most users call.

Chains and their laws are those of `jebm.chains`; a call runs as one compiled program.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jebm import checks, types
from jebm.chains import decode, example_keys, override, run_chains
from jebm.kernels import ANCESTRAL, STARTS, Chain, Chains
from jebm.model import Model, Params, check_chains, float_dtype
from jebm.priors.base import Law
from jebm.priors.energy import law_of


class Samples(NamedTuple):
    """Images and the latents they were decoded from."""

    x: Float[jax.Array, "n h w c"]  # in [0, 1], the decoder's mean
    latents: types.Latents  # z, bottom to top, each [N, *shape_i]


def sample(
    key: types.Key,
    model: Model,
    params: Params,
    num_samples: int,
    *,
    prior: str | Law = "ebm",
    kernel: Chain | None = None,
    num_steps: int | None = None,
    step_size: jax.typing.ArrayLike | None = None,
    temperature: jax.typing.ArrayLike | None = None,
    above: types.Latents = (),
) -> Samples:
    """Draws images from the model.

    Args:
      key: typed key, []. Example n draws from `fold_in(key, n)`.
      model: the model.
      params: its parameters.
      num_samples: N.
      prior: "ebm" for the tilted prior, by a chain; "gaussian" for the hierarchy
        p_beta alone, exactly. For a model without energy the two are one. Or a
        `jebm.priors.Law` of this very generator, which draws in its own way, as the
        "ebm" of a model of `jebm.priors.as_model` does unless a chain, a temperature or
        `above` is given.
      kernel: the chain, `jebm.Langevin`, `jebm.MALA`, `jebm.Underdamped` or
        `jebm.Tempered`; None for the model's own. None runs with prior="gaussian".
      num_steps: of the chain; None for the kernel's. Another number compiles
        nothing anew.
      step_size: of the chain; None for the kernel's.
      temperature: scales every sigma_i of the hierarchy, for both priors; None for 1.
      above: z_{>k}, the top layers' latents, bottom to top, each [N, *shape_i]: these
        are kept and the k >= 1 layers below are drawn given them. () draws all.

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
      >>> exact = jebm.MALA(num_steps=20, step_size=0.2)
      >>> sample(jax.random.key(1), model, params, 4, kernel=exact).x.shape
      (4, 8, 8, 1)
    """
    checks.key(key)
    checks.params(model, params)
    checks.positive_int("num_samples", num_samples)
    chosen = kernel, num_steps, step_size, temperature
    if isinstance(prior, Law):
        return _of_law(key, model, params, num_samples, prior, chosen, above)
    checks.one_of("prior", prior, ("ebm", "gaussian"))
    law = law_of(model, params) if prior == "ebm" else None
    if law is not None and not above and all(setting is None for setting in chosen):
        return _law_samples(key, law, num_samples)
    temperature = 1.0 if temperature is None else temperature
    checks.number("temperature", temperature)
    checks.above(model, above, num_samples)
    chain = checks.chain(kernel, model.chains.prior)
    chain = override(chain, num_steps, step_size)
    check_chains(model.backbone, Chains(prior=chain))
    if prior == "gaussian" or model.energy is None:
        chain = ANCESTRAL
    keys = example_keys(key, jnp.arange(num_samples))
    chain, steps = _told_apart(chain, (params, temperature, above))
    return _sample(keys, model, params, chain, steps, temperature, tuple(above))


def _of_law(key, model, params, num_samples, law, chosen, above):
    """Draws samples of another prior; it has no chain that one could choose."""
    if any(setting is not None for setting in chosen) or above:
        raise ValueError(
            "a Law draws in its own way: leave out kernel, num_steps, step_size, "
            "temperature and above"
        )
    ours = jax.tree.structure(law.frozen.params.backbone)
    if law.frozen.model.backbone != model.backbone or ours != jax.tree.structure(
        params.backbone
    ):
        raise ValueError("prior must be a Law of this model's backbone")
    return _law_samples(key, law, num_samples)


@functools.partial(jax.jit, static_argnums=2)
def _law_samples(key, law, num_samples):
    eps = law.sample(key, num_samples)
    latents, state = law.frozen.transport(eps)
    frozen = law.frozen
    return Samples(decode(frozen.model, frozen.params, latents, state), latents)


def _told_apart(chain, data):
    """Returns a chain that is the same for every number of steps, and the number.

    Where a caller transforms the draw the number stays part of the chain: gradients do
    not flow back through a loop of a number of steps that is data.
    """
    leaves = jax.tree.leaves((chain, data))
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    if traced or not chain.num_steps:
        return chain, None
    return dataclasses.replace(chain, num_steps=1), jnp.asarray(chain.num_steps)


@jax.jit
def _sample(keys, model, params, chain, num_steps, temperature, above):
    end = run_chains(
        keys, model, params, chain, above=above, temperature=temperature,
        num_steps=num_steps,
    )  # fmt: skip
    return Samples(decode(model, params, end.latents, end.state), end.latents)


def posterior_sample(
    key: types.Key,
    model: Model,
    params: Params,
    x: types.Images,
    *,
    kernel: Chain | None = None,
    num_steps: int | None = None,
    step_size: jax.typing.ArrayLike | None = None,
    start: str | None = None,
) -> types.Latents:
    """Draws latents of p(z | x): by a chain, an encoder, or one after the other.

    Args:
      key: typed key, []. Example n draws from `fold_in(key, n)`.
      model: the model.
      params: its parameters.
      x: images [N, H, W, C], floating-point in [0, 1].
      kernel: the chain, `jebm.Langevin`, `jebm.MALA`, `jebm.Underdamped` or
        `jebm.Tempered`; None for the model's own.
      num_steps: of the chain; None for the kernel's. Another number compiles
        nothing anew.
      step_size: of the chain; None for the kernel's.
      start: of the chain, see `jebm.kernels.Chain`; None for the kernel's. With
        `num_steps=0` the draw is the encoder's at "encoder", and its mode at "mode".

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
    arguments = _posterior(key, model, params, x, kernel, num_steps, step_size, start)
    return _posterior_sample(*arguments)


def reconstruct(
    key: types.Key,
    model: Model,
    params: Params,
    x: types.Images,
    *,
    kernel: Chain | None = None,
    num_steps: int | None = None,
    step_size: jax.typing.ArrayLike | None = None,
    start: str | None = None,
) -> Float[jax.Array, "n h w c"]:
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
    arguments = _posterior(key, model, params, x, kernel, num_steps, step_size, start)
    return _reconstruct(*arguments)


def _posterior(key, model, params, x, kernel, num_steps, step_size, start):
    """Checks what is asked of the posterior: keys, model, params, x and the chain."""
    checks.key(key)
    checks.params(model, params)
    checks.images(model, x)
    chain = override(checks.chain(kernel, model.chains.posterior), num_steps, step_size)
    if start is not None:
        checks.one_of("start", start, STARTS)
        chain = dataclasses.replace(chain, start=start)
    checks.sees_image(chain)
    check_chains(model.backbone, Chains(posterior=chain))
    keys = example_keys(key, jnp.arange(x.shape[0]))
    return keys, model, params, x, *_told_apart(chain, (params, x))


def _run(keys, model, params, x, chain, num_steps):
    x = x.astype(float_dtype(params))
    return run_chains(keys, model, params, chain, x=x, num_steps=num_steps)


@jax.jit
def _posterior_sample(*arguments):
    return _run(*arguments).latents


@jax.jit
def _reconstruct(keys, model, params, x, chain, num_steps):
    end = _run(keys, model, params, x, chain, num_steps)
    return decode(model, params, end.latents, end.state)
