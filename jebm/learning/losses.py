"""The surrogate losses: `jebm.objectives`, averaged, with penalties.

Each takes parameters and a `Batch` and returns its loss and what it `Found` on the way.
Samples of the batch are held fixed; those of the encoder are drawn in the loss.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util

from jebm import objectives, spectral
from jebm.hierarchy import Latents
from jebm.learning.options import Options, WarmUp
from jebm.model import Model, Params, energy


class PriorSamples(NamedTuple):
    """z- of the tilted prior."""

    latents: Latents  # each [B, *shape_i]
    eps: Latents  # the noise of T behind them


class Batch(NamedTuple):
    """What a loss is of."""

    x: jax.Array  # [B, H, W, C] in [0, 1]
    keys: jax.Array  # [B], of the encoder's draws
    positive: Latents | None  # z+; None where the encoder draws them in the loss
    negative: PriorSamples | None  # None for a Gaussian prior
    step: jax.Array  # []
    spectral: dict[str, spectral.Vectors]  # as of `LearnerState`


class Found(NamedTuple):
    """What a pass finds besides its loss."""

    info: dict[str, jax.Array]  # per example or []
    statistics: dict[str, Any]  # collection "batch_stats" of the backbone, if any
    spectral: dict[str, spectral.Vectors]  # "backbone", where its norms are penalised


def maximum_likelihood_loss(
    model: Model, options: Options, params: Params, batch: Batch
) -> tuple[jax.Array, Found]:
    """Of samples z+ of the posterior."""
    plus = objectives.posterior_terms(model, params, batch.x, batch.positive)
    loss, info = _with_prior(model, options, params, batch, plus, 1.0)
    loss += plus.loss().mean()
    return loss, Found(info | {"loss_nats": loss}, {}, {})


def variational_loss(
    model: Model,
    options: Options,
    warm_up: WarmUp,
    energy_grad_scale: jax.typing.ArrayLike,
    params: Params,
    batch: Batch,
) -> tuple[jax.Array, Found]:
    """Of samples z+ of an encoder.

    Where a chain has refined its draws, generator and energies learn from those as by
    maximum likelihood, and the encoder from its own.
    """
    refined, scale, learned = batch.positive is not None, energy_grad_scale, params
    if refined:
        learned, scale = objectives.freeze_all_but_encoder(model, params), 1.0
    plus = objectives.variational_terms(
        model, learned, batch.x, batch.keys, energy_grad_scale
    )
    loss = plus.loss(_kl_weights(model, warm_up, batch, plus)).mean()
    info, vectors = {"kl_nats": plus.log_q - plus.log_prior}, {}
    if warm_up.spectral_penalty:
        norms, vectors = _spectral_norms(params, batch, plus)
        loss += warm_up.spectral_weight(batch.step) * norms
        info["spectral_norms"] = norms
    statistics = {k: v for k, v in plus.mutated.items() if k == "batch_stats"}
    if refined:
        plus = objectives.posterior_terms(model, params, batch.x, batch.positive)
        loss += plus.loss().mean()
    prior_loss, prior_info = _with_prior(model, options, params, batch, plus, scale)
    loss += prior_loss
    return loss, Found(info | prior_info | {"loss_nats": loss}, statistics, vectors)


def second_stage_loss(
    model: Model, options: Options, nce_steps: int, params: Params, batch: Batch
) -> tuple[jax.Array, Found]:
    """E(z+) - E(z-), or in the first steps `objectives.noise_contrastive_loss`."""
    plus = energy(model, params, batch.positive)
    minus = energy(model, params, batch.negative.latents)
    contrast = (plus - minus).mean()
    if nce_steps:
        nce = objectives.noise_contrastive_loss(plus, minus).mean()
        contrast = jnp.where(batch.step < nce_steps, nce, contrast)
    penalty, info = _penalties(model, options, params, plus, minus, batch.negative)
    loss = penalty + contrast
    return loss, Found(info | {"loss_nats": loss}, {}, {})


def _with_prior(model, options, params, batch, plus, scale):
    """The prior's side of the loss with its penalties, and what there is to watch."""
    info = {
        "log_likelihood_nats": plus.log_likelihood,
        "log_prior_positive_nats": plus.log_prior,
    }
    if batch.negative is None:
        return 0.0, info
    minus = objectives.prior_terms(model, params, batch.negative.latents, scale)
    penalty, found = _penalties(
        model, options, params, plus.energy, minus.energy, batch.negative
    )
    info |= found | {"log_prior_negative_nats": minus.log_prior}
    return minus.loss().mean() + penalty, info


def _penalties(model, options, params, plus, minus, negative):
    """Penalties of energies [B] at z+ and z-, and what to watch of them."""
    loss = options.energy_penalty * ((plus**2).mean() + (minus**2).mean())
    weight = options.gradient_penalty
    if isinstance(weight, jax.Array) or weight:  # a traced one is not known to be 0
        steepness = objectives.energy_gradient_penalty(model, params, negative.eps)
        loss += weight * steepness.mean()
    eps = [e.reshape(e.shape[0], -1) for e in negative.eps]
    return loss, {
        "energy_positive_nats": plus,
        "energy_negative_nats": minus,
        "energy_gap_nats": minus.mean() - plus.mean(),
        # Of the noise behind the prior samples: 1 under the Gaussian prior.
        "prior_eps_square": (jnp.concatenate(eps, axis=1) ** 2).mean(axis=1),
    }


def _kl_weights(model, warm_up, batch, plus):
    """Weights of the layers' divergences, [L]; None for all 1."""
    if not warm_up.kl_steps:
        return None
    progress = warm_up.progress(batch.step)
    if warm_up.kl_balance:
        return objectives.balanced_kl_weights(model, plus.kl_per_layer, progress)
    return jnp.full_like(plus.kl_per_layer[0], progress)


def _spectral_norms(params, batch, plus):
    """The norms of the backbone's kernels and scales, summed, and their vectors."""
    each, vectors = spectral.norms(plus.mutated["kernels"], batch.spectral["backbone"])
    leaves = traverse_util.flatten_dict(params.backbone["params"])
    scales = [jnp.abs(v).max() for path, v in leaves.items() if path[-1] == "scale"]
    return sum(jax.tree.leaves(each) + scales), {"backbone": vectors}
