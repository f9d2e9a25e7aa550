"""The surrogate losses: `jebm.objectives`, averaged, with penalties.

Samples of the batch are held fixed; those of the encoder are drawn in the loss.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jebm import divergence, objectives, spectral
from jebm.hierarchy import has_encoder
from jebm.learning.options import Options
from jebm.model import Model, Params, energy
from jebm.spectral import Vectors
from jebm.warm_up import WarmUp


class Batch(NamedTuple):
    """What a loss takes."""

    x: Any  # [B, H, W, C] in [0, 1]; of a second stage it may be z+
    keys: jax.Array  # [B], of the encoder's draws
    positive: Any  # z+, Latents; None where the encoder draws them in the loss
    negative: Any  # z-, Latents; None for a Gaussian prior
    eps: Any  # the noise of T behind z-
    step: jax.Array  # []
    spectral: dict[str, Vectors]  # as of `LearnerState`


class Found(NamedTuple):
    """What a pass returns besides its loss."""

    info: dict[str, jax.Array]  # per example or []
    statistics: dict[str, Any]  # collection "batch_stats" of the backbone, if any
    spectral: dict[str, Vectors]  # "backbone", where its norms are penalised


def maximum_likelihood_loss(
    model: Model, options: Options, params: Params, batch: Batch
) -> tuple[jax.Array, Found]:
    """Computes the loss of posterior samples z+, which an encoder learns to draw."""
    if "batch_stats" in params.backbone:
        raise ValueError(
            "maximum_likelihood would never move the statistics of batch "
            "normalisation: use variational, or a backbone without it"
        )
    tilt = options.tilt(batch.step, batch.x.dtype)
    plus = objectives.posterior_terms(model, params, batch.x, batch.positive, tilt)
    loss, info = _with_prior(model, options, params, batch, plus, tilt)
    loss += plus.loss().mean()
    if has_encoder(model.backbone):
        log_q = objectives.encoder_log_prob(model, params, batch.x, batch.positive)
        loss, info = loss - log_q.mean(), info | {"log_q_nats": log_q}
    return _found(loss, info)


def variational_loss(
    model: Model,
    options: Options,
    warm_up: WarmUp,
    energy_grad_scale: jax.typing.ArrayLike,
    params: Params,
    batch: Batch,
) -> tuple[jax.Array, Found]:
    """Computes the loss of samples z+ of an encoder.

    Where a chain has refined its draws, generator and energies learn from those as by
    maximum likelihood, and the encoder from its own.
    """
    refined, scale, learned = batch.positive is not None, energy_grad_scale, params
    if refined:
        learned = objectives.freeze_all_but_encoder(model, params)
        scale = options.tilt(batch.step, batch.x.dtype)
    plus = objectives.variational_terms(
        model, learned, batch.x, batch.keys, energy_grad_scale
    )
    weights = None
    if warm_up.kl_steps:
        size = jax.lax.stop_gradient(jnp.abs(plus.kl_per_layer)).mean(axis=0)
        weights = objectives.kl_weights(
            model,
            options.reduce(size),
            warm_up.progress(batch.step),
            warm_up.kl_balance,
        )
    loss = plus.loss(weights).mean()
    info, vectors = {"kl_nats": plus.log_q - plus.log_prior}, {}
    if warm_up.spectral_penalty:
        before, kernels = batch.spectral["backbone"], plus.mutated["kernels"]
        norms, after = spectral.total_norm(params.backbone["params"], kernels, before)
        loss += warm_up.spectral_weight(batch.step) * norms
        info["spectral_norms"], vectors["backbone"] = norms, after
    statistics = {k: v for k, v in plus.mutated.items() if k == "batch_stats"}
    if refined:
        plus = objectives.posterior_terms(model, params, batch.x, batch.positive, scale)
        loss += plus.loss().mean()
    of_prior, more = _with_prior(model, options, params, batch, plus, scale)
    return _found(loss + of_prior, info | more, statistics, vectors)


def second_stage_loss(
    model: Model, options: Options, nce_steps: int, params: Params, batch: Batch
) -> tuple[jax.Array, Found]:
    """Computes E(z+) - E(z-), or at first `objectives.noise_contrastive_loss`."""
    plus = energy(model, params, batch.positive)
    minus = energy(model, params, batch.negative)
    contrast = (plus - minus).mean()
    if nce_steps:
        nce = objectives.noise_contrastive_loss(plus, minus).mean()
        contrast = jnp.where(batch.step < nce_steps, nce, contrast)
    penalty, info = _penalties(model, options, params, batch, plus, minus)
    return _found(contrast + penalty, info)


def _found(loss, info, statistics=None, vectors=None):
    return loss, Found(info | {"loss_nats": loss}, statistics or {}, vectors or {})


def _with_prior(model, options, params, batch, plus, scale):
    """Returns the prior's part of the loss with its penalties, and its metrics."""
    info = {
        "log_likelihood_nats": plus.log_likelihood,
        "log_prior_positive_nats": plus.log_prior,
    }
    if batch.negative is None:
        return 0.0, info
    minus = objectives.prior_terms(model, params, batch.negative, scale)
    energies = plus.energy, minus.energy
    penalty, more = _penalties(model, options, params, batch, *energies)
    info |= more | {"log_prior_negative_nats": minus.log_prior}
    return minus.loss().mean() + penalty, info


def _penalties(model, options, params, batch, plus, minus):
    """Returns penalties of energies [B] at z+ and z-, and their metrics."""
    loss = options.energy_penalty * ((plus**2).mean() + (minus**2).mean())
    weight = options.gradient_penalty
    if isinstance(weight, jax.Array) or weight:  # a traced one is not known to be 0
        steepness = objectives.energy_gradient_penalty(model, params, batch.eps)
        loss += weight * steepness.mean()
    info = {"energy_positive_nats": plus, "energy_negative_nats": minus}
    return loss, info | divergence.watched(plus, minus, batch.eps)
