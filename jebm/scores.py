"""Scores of images: how likely the model finds them, and by which of its layers.

    score(k)  = E[ log p(x|z) + log p_beta(z) - E(z) ]
    LLR^{>k}  = score(0) - score(k)
    elbo(k)   = E[ log p(x|z) + log p_beta(z_{>k}) - log q(z_{>k}|x) ] <= log p(x)

where z_{>k} is drawn given the image, and the k layers below from the prior given
z_{>k}: at k = 0 all layers have seen the image, at higher k only the upper ones. A
score is L^{>k} of arXiv 2306.06323: unnormalised, without entropy, to compare images
under one model. elbo(k) is L^{>k} of arXiv 2102.08248, with the layers below drawn
from the prior, not at its mode.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from jebm import checks, types
from jebm.chains import draw_noise, example_keys, prior_chain, run_chains
from jebm.hierarchy import given, infer, log_prior, top_down
from jebm.kernels import Chain, Chains
from jebm.model import Model, Params, check_chains, energy, float_dtype
from jebm.objectives import PosteriorTerms, posterior_terms


def score(
    key: types.Key,
    model: Model,
    params: Params,
    x: types.Images,
    k: int = 0,
    *,
    num_samples: int = 1,
    kernel: Chain | None = None,
    posterior: Chain | None = None,
) -> types.PerExample:
    """Returns score(k) of each image; minus score(0) is an anomaly score.

    Args:
      key: typed key, []. Image n draws from `fold_in(key, n)`, and at all k the same
        z_{>k}.
      model: the model.
      params: its parameters.
      x: images [N, H, W, C], floating-point in [0, 1].
      k: layers to draw from the prior, 0 <= k < L.
      num_samples: posterior samples that the mean is over; time, not memory, grows.
      kernel: the chain of the prior that draws the k layers below; None for the
        model's. Uncorrected steps bias the score, `jebm.MALA` does not.
      posterior: the chain that draws z_{>k}; None for the model's.

    Returns:
      [N], nats, up to log Z.

    Raises:
      ValueError: for an argument out of range, images of another shape, dtype or
        range, or params that do not fit the model.

    Example:
      >>> import jebm
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> params = jebm.init(jax.random.key(0), model)
      >>> x = jnp.full((3, 8, 8, 1), 0.5)
      >>> score(jax.random.key(1), model, params, x, k=1).shape
      (3,)
    """
    terms = score_terms(
        key, model, params, x, k, num_samples=num_samples, kernel=kernel,
        posterior=posterior,
    )  # fmt: skip
    return -terms.loss()


def score_terms(
    key: types.Key,
    model: Model,
    params: Params,
    x: types.Images,
    k: int = 0,
    *,
    num_samples: int = 1,
    kernel: Chain | None = None,
    posterior: Chain | None = None,
) -> PosteriorTerms:
    """Returns the terms of `score`, means over the samples; its arguments and errors.

    Example:
      >>> import jebm
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> params = jebm.init(jax.random.key(0), model)
      >>> x = jnp.full((3, 8, 8, 1), 0.5)
      >>> terms = score_terms(jax.random.key(1), model, params, x)
      >>> terms.log_likelihood.shape, terms.energy.shape
      ((3,), (3,))
    """
    keys = _check(key, model, params, x, k, num_samples)
    prior = checks.chain(kernel, prior_chain(model))
    posterior = checks.chain(posterior, model.chains.posterior, "posterior")
    checks.sees_image(posterior)
    check_chains(model.backbone, Chains(prior, posterior))
    return _score_terms(keys, model, params, x, prior, posterior, k, num_samples)


def log_likelihood_ratio(
    key: types.Key,
    model: Model,
    params: Params,
    x: types.Images,
    k: int,
    *,
    num_samples: int = 1,
    kernel: Chain | None = None,
    posterior: Chain | None = None,
) -> types.PerExample:
    """Returns LLR^{>k} = score(0) - score(k) of each image, of the same z_{>k}.

    What the lowest k layers gain by having seen the image. Low layers explain any
    image; one from elsewhere needs them for what the upper layers cannot tell, so its
    ratio is high. Arguments and errors are those of `score`, with 1 <= k < L.

    Example:
      >>> import jebm
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> params = jebm.init(jax.random.key(0), model)
      >>> x = jnp.full((3, 8, 8, 1), 0.5)
      >>> log_likelihood_ratio(jax.random.key(1), model, params, x, k=1).shape
      (3,)
    """
    if k == 0:
        raise ValueError("k must be at least 1: at 0 the ratio is 0")

    def at(k):
        return score(
            key, model, params, x, k, num_samples=num_samples, kernel=kernel,
            posterior=posterior,
        )  # fmt: skip

    return at(0) - at(k)


def elbo(
    key: types.Key,
    model: Model,
    params: Params,
    x: types.Images,
    k: int = 0,
    *,
    num_samples: int = 1,
    importance: bool = False,
    log_z: jax.typing.ArrayLike | None = None,
) -> types.PerExample:
    """Estimates elbo(k) of each image, a lower bound of log p(x) in expectation.

    Args:
      key: typed key, []. Image n draws from `fold_in(key, n)`.
      model: the model, with an encoder that draws its posterior samples alone.
      params: its parameters.
      x: images [N, H, W, C], floating-point in [0, 1].
      k: layers to draw from the prior, 0 <= k < L; with an energy, 0 only.
      num_samples: samples of q.
      importance: at k = 0, the importance-weighted bound, log of the mean of p / q
        over the samples instead of the mean of the log: tighter, and exact as their
        number grows. How far it may still be from it, `importance_log_weights` tells.
      log_z: log Z of the tilted prior, in nats: demanded with an energy, refused
        without. With 0. the value is up to log Z.

    Returns:
      [N], nats.

    Raises:
      ValueError: for an argument out of range; without an encoder, or with posterior
        steps after it, whose log q is not known; with an energy at k > 0, where the
        normaliser of the layers below depends on z_{>k}; and as `score`.

    Example:
      >>> import jebm
      >>> backbone = {"encoder_widths": (16,)}
      >>> chains = {"posterior": {"start": "encoder", "num_steps": 0}}
      >>> model = jebm.build({"image_shape": (8, 8, 1), "backbone": backbone,
      ...                     "chains": chains, "energy": None})
      >>> params = jebm.init(jax.random.key(0), model)
      >>> x = jnp.full((3, 8, 8, 1), 0.5)
      >>> elbo(jax.random.key(1), model, params, x, k=1).shape
      (3,)
    """
    keys = _check(key, model, params, x, k, num_samples)
    _check_encoder(model)
    if importance and k:
        raise ValueError(f"importance weighting is defined at k = 0 alone, got k={k}")
    if model.energy is None:
        if log_z is not None:
            raise ValueError("log_z is 0 for a Gaussian prior; leave it out")
    elif k:
        raise ValueError(
            "with an energy, the normaliser of the layers below depends on z_{>k}: "
            f"elbo is defined at k = 0 alone, got k={k}"
        )
    elif log_z is None:
        raise ValueError("log_z must be given for a model with an energy")
    log_w = _log_weights(keys, model, params, x, k, num_samples)
    log_w = log_w - (0.0 if log_z is None else log_z)
    if importance:
        return jax.nn.logsumexp(log_w, axis=0) - jnp.log(num_samples)
    return log_w.mean(axis=0)


def importance_log_weights(
    key: types.Key, model: Model, params: Params, x: types.Images, num_samples: int
) -> Float[jax.Array, "n samples"]:
    """Weighs samples of the encoder: log[ p(x|z) p_beta(z) exp(-E(z)) / q(z|x) ].

    `importance.estimate` of it, minus log Z, is log p(x) with an error and effective
    samples; `elbo` with `importance=True` is the value alone. The error does not cover
    what q never draws: where the posterior has heavier tails than q, or a mode beside
    it, value and error are both too small, whatever the effective samples.
    `importance.pareto_k` of the weights tells heavy tails: above .7, do not trust the
    error of that image. An image whose mode q misses it does not tell.

    Args:
      key, model, params, x: as of `elbo`; errors too.
      num_samples: samples of q; time, not memory, grows.

    Returns:
      [N, num_samples], nats, up to log Z.

    Example:
      >>> import jebm
      >>> backbone = {"encoder_widths": (16,)}
      >>> chains = {"posterior": {"start": "encoder", "num_steps": 0}}
      >>> model = jebm.build({"image_shape": (8, 8, 1), "backbone": backbone,
      ...                     "chains": chains})
      >>> params = jebm.init(jax.random.key(0), model)
      >>> x = jnp.full((3, 8, 8, 1), 0.5)
      >>> importance_log_weights(jax.random.key(1), model, params, x, 4).shape
      (3, 4)
    """
    keys = _check(key, model, params, x, 0, num_samples)
    _check_encoder(model)
    return _log_weights(keys, model, params, x, 0, num_samples).T


def _check_encoder(model):
    """Refuses a model whose posterior samples have no known log q."""
    posterior = model.chains.posterior
    if posterior.start != "encoder":
        raise ValueError(
            "log q(z | x) is needed, and this model draws z by a chain that does not "
            f"start at a draw of an encoder (start={posterior.start!r})"
        )
    if posterior.num_steps:
        raise ValueError(
            f"log q(z | x) is needed, which is not known after {posterior.num_steps} "
            "steps of the posterior chain: replace it by one of num_steps=0"
        )


def _check(key, model, params, x, k, num_samples):
    """Refuses what cannot be scored; returns a key per image."""
    checks.key(key)
    checks.params(model, params)
    checks.images(model, x)
    checks.positive_int("num_samples", num_samples)
    layers = len(model.backbone.latent_shapes)
    if not isinstance(k, int) or isinstance(k, bool) or not 0 <= k < layers:
        raise ValueError(
            f"k must be an integer from 0 to {layers - 1}, as the model has {layers} "
            f"layers, got {k!r}"
        )
    return example_keys(key, jnp.arange(x.shape[0]))


def _per_sample(keys, num_samples, one):
    """Calls `one(keys)` for each of the samples, one after the other: leaves [S, N]."""

    def draw(index):
        return one(jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index))

    return jax.lax.map(draw, jnp.arange(num_samples))


# What the key of a sample is folded with, so that layers above and below differ.
_ABOVE, _BELOW = 0, 1


def _split(keys):
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    return fold(keys, _ABOVE), fold(keys, _BELOW)


@functools.partial(jax.jit, static_argnums=(6, 7))
def _score_terms(keys, model, params, x, prior, posterior, k, num_samples):
    x = x.astype(float_dtype(params))

    def one(keys):
        keys_above, keys_below = _split(keys)
        latents = run_chains(keys_above, model, params, posterior, x=x).latents
        if k:
            above = latents[k:]
            latents = run_chains(keys_below, model, params, prior, above=above).latents
        return posterior_terms(model, params, x, latents)

    return jax.tree.map(lambda t: t.mean(axis=0), _per_sample(keys, num_samples, one))


@functools.partial(jax.jit, static_argnums=(4, 5))
def _log_weights(keys, model, params, x, k, num_samples):
    x = x.astype(float_dtype(params))

    def one(keys):
        keys_above, keys_below = _split(keys)
        noise = draw_noise(keys_above, model, params)

        def inferred(backbone):
            latents, log_q, _, _ = infer(backbone, x, noise)
            return latents, log_q

        latents, log_q = nn.apply(inferred, model.backbone)(params.backbone)
        if k:
            above = latents[k:]
            chain = prior_chain(model)
            latents = run_chains(keys_below, model, params, chain, above=above).latents

        def joint(backbone):
            _, priors, state = top_down(backbone, x.shape[0], given(latents))
            log_p = log_prior(latents[k:], priors[k:])
            return log_p, state, backbone.decode(state)

        log_p, state, output = nn.apply(joint, model.backbone)(params.backbone)
        log_p = log_p - energy(model, params, latents, state)
        return model.likelihood.log_prob(output, x) + log_p - sum(log_q[k:])

    return _per_sample(keys, num_samples, one)
