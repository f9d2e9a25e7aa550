"""Maximum-likelihood learning of the generator, the hierarchy and the energies.

    loss = mean[ -(log p(x|z+) + log p_beta(z+) - E(z+) - log q(z+|x)) ]
         + mean[   log p_beta(z-) - E(z-) ],            z+ ~ p(z|x),  z- ~ p(z)

By maximum likelihood z+ is a sample of the posterior and there is no log q; with an
encoder it is one of q. Without one the gradient, samples held fixed, is that of
-log p(x): the second line is the gradient of log Z for the energies, and for beta as
well, since Z depends on beta. (arXiv 2306.06323)

With an encoder, `energy_grad_scale` mixes two losses of generator, hierarchy and
encoder: 1 is the one above, 0 that of the untilted prior, minus the evidence lower
bound of a VAE. The energies learn from the one above at any scale.

Terms are per example: the mean is taken once, by the caller, who may also weigh them.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jebm.chains import draw_noise, priors_at
from jebm.hierarchy import (
    Latents,
    given,
    has_normal_posterior,
    infer,
    log_prior,
    normal_posterior,
    top_down,
    transport,
)
from jebm.model import Model, Params, energy, float_dtype


class PosteriorTerms(NamedTuple):
    """Terms of posterior samples, in nats."""

    log_likelihood: jax.Array  # [B], log p(x | z+)
    log_prior: jax.Array  # [B], log p_beta(z+)
    energy: jax.Array  # [B], E(z+)
    log_q: jax.Array  # [B], log q(z+ | x); 0 where z+ is not of an encoder
    # Of an encoder: [B, L], log q - log p_beta of each layer, bottom to top.
    kl_per_layer: Any = None
    # Of an encoder: collections that the pass wrote, "batch_stats" and "kernels".
    mutated: Any = None

    def loss(self, kl_weights: jax.Array | None = None) -> jax.Array:
        """Sums the loss's first line, [B]; `kl_weights` [L] weigh `kl_per_layer`."""
        if kl_weights is None:
            return -(self.log_likelihood + self.log_prior - self.energy - self.log_q)
        divergence = (kl_weights.reshape(1, -1) * self.kl_per_layer).sum(axis=1)
        return divergence + self.energy - self.log_likelihood


class PriorTerms(NamedTuple):
    """Terms of prior samples, in nats."""

    log_prior: jax.Array  # [B'], log p_beta(z-)
    energy: jax.Array  # [B'], E(z-)

    def loss(self) -> jax.Array:
        """Sums the loss's second line, [B']."""
        return self.log_prior - self.energy


def posterior_terms(
    model: Model,
    params: Params,
    x: jax.Array,
    latents: Latents,
    energy_grad_scale: jax.typing.ArrayLike = 1.0,
) -> PosteriorTerms:
    """Computes terms of posterior samples z+ of `x` [B, H, W, C]; z+ gets no gradient.

    `energy_grad_scale` scales the gradient of E(z+) that reaches the backbone, where
    the energy reads its state; pass it to `prior_terms` too.

    Example:
      >>> import jebm
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> params = jebm.init(jax.random.key(0), model)
      >>> x, latents = jebm.sample(jax.random.key(1), model, params, 4)
      >>> posterior_terms(model, params, x, latents).loss().shape
      (4,)
    """
    latents = jax.lax.stop_gradient(latents)

    def backbone_terms(backbone):
        _, priors, state = top_down(backbone, x.shape[0], given(latents))
        return log_prior(latents, priors), state, backbone.decode(state)

    log_p, state, output = nn.apply(backbone_terms, model.backbone)(params.backbone)
    return PosteriorTerms(
        model.likelihood.log_prob(output, x),
        log_p,
        energy(model, params, latents, scale_gradient(state, energy_grad_scale)),
        jnp.zeros_like(log_p),
    )


def variational_terms(
    model: Model,
    params: Params,
    x: jax.Array,
    keys: jax.Array,
    energy_grad_scale: jax.typing.ArrayLike = 1.0,
) -> PosteriorTerms:
    """Computes terms of z+ ~ q(z | x), drawn by the encoder from `keys` [B].

    Gradients pass through z+ to the encoder. With E = 0 the loss is minus the evidence
    lower bound. `energy_grad_scale` scales the gradient of E(z+) that reaches what drew
    z+, and leaves values as they are; pass it to `prior_terms` too. Above 0, q can
    climb f faster than the prior's chain can follow.

    This is a pass of training: batch normalisation goes by the statistics of `x`.

    Example:
      >>> import jebm
      >>> backbone = {"encoder_widths": (16,)}
      >>> model = jebm.build({"image_shape": (8, 8, 1), "backbone": backbone})
      >>> params = jebm.init(jax.random.key(0), model)
      >>> keys = jax.random.split(jax.random.key(1), 4)
      >>> variational_terms(model, params, jnp.ones((4, 8, 8, 1)), keys).loss().shape
      (4,)
    """

    noise = draw_noise(keys, model, params)

    def backbone_terms(backbone):
        latents, log_q, priors, state = infer(backbone, x, noise)
        log_p = [p.log_prob(z) for z, p in zip(latents, priors, strict=True)]
        return latents, log_q, log_p, backbone.decode(state)

    apply = nn.apply(backbone_terms, model.backbone, mutable=("batch_stats", "kernels"))
    (latents, log_q, log_p, output), written = apply(params.backbone)
    shared = params._replace(
        backbone=scale_gradient(params.backbone, energy_grad_scale)
    )
    return PosteriorTerms(
        model.likelihood.log_prob(output, x),
        sum(log_p),
        energy(model, shared, scale_gradient(latents, energy_grad_scale)),
        sum(log_q),
        jnp.stack(log_q, axis=1) - jnp.stack(log_p, axis=1),
        written,
    )


def encoder_log_prob(
    model: Model, params: Params, x: jax.Array, latents: Latents
) -> jax.Array:
    """Computes log q(z | x) of fixed latents; gradients reach the encoder alone.

    An encoder that covers the posterior maximises the mean of this over samples of the
    posterior. It is no bound on log p(x), and has no gradient in the generator.
    (arXiv 1308.0815, the wake phase of sleep)

    Returns:
      [B], nats.

    Raises:
      ValueError: for a backbone whose q is not normal given the layers above.

    Example:
      >>> import jebm
      >>> backbone = {"encoder_widths": (16,)}
      >>> model = jebm.build({"image_shape": (8, 8, 1), "backbone": backbone})
      >>> params = jebm.init(jax.random.key(0), model)
      >>> x, latents = jebm.sample(jax.random.key(1), model, params, 4)
      >>> encoder_log_prob(model, params, x, latents).shape
      (4,)
    """
    if not has_normal_posterior(model.backbone):
        raise ValueError(
            "log q(z | x) of given latents needs an encoder whose q is normal given "
            "the layers above, and this backbone has none"
        )
    params = freeze_all_but_encoder(model, params)
    latents = jax.lax.stop_gradient(latents)

    def log_q(backbone):
        features, of_layers = backbone.encode(x), []

        def pick(i, state, prior):
            q = normal_posterior(backbone, i, state, features, prior)
            of_layers.append(q.log_prob(latents[i]))
            return latents[i]

        top_down(backbone, x.shape[0], pick)
        return sum(of_layers)

    return nn.apply(log_q, model.backbone)(params.backbone)


def sown_kernels(model: Model, params: Params) -> Any:
    """Returns the shapes of the kernels that the backbone sows, for `jebm.spectral`.

    Raises:
      ValueError: for a backbone that sows none.
    """
    x = jnp.zeros((1, *model.image_shape), float_dtype(params))
    keys = jax.random.split(jax.random.key(0), 1)
    terms = jax.eval_shape(variational_terms, model, params, x, keys)
    if "kernels" not in terms.mutated:
        raise ValueError(
            "spectral_penalty needs a backbone that sows its kernels, got "
            f"{type(model.backbone).__name__}"
        )
    return terms.mutated["kernels"]


def kl_weights(
    model: Model,
    size: jax.Array,
    progress: jax.typing.ArrayLike,
    balance: bool = True,
) -> jax.Array:
    """Returns the weights of the layers' divergences while these are warmed up, [L].

    Below 1, `progress` weighs the sum; within it a layer weighs the more, the larger
    its divergence and the fewer its units, so that none is shut off early: in
    proportion to mean |log q - log p| / alpha, alpha the pixels of its map over the
    number of layers with such maps. From 1 on every weight is 1. No gradient passes.
    (arXiv 2007.03898, appendix A)

    Args:
      model: the model.
      size: mean |log q - log p| of each layer, [L]: over a batch, that of
        `jnp.abs(terms.kl_per_layer).mean(axis=0)`.
      progress: of the warm-up, in [0, 1].
      balance: whether layers differ; else each weighs `progress`.

    Example:
      >>> import jebm
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> kl_weights(model, jnp.array([1.0, 3.0]), 0.5).round(2)
      Array([0.25, 0.75], dtype=float32)
    """
    progress = jnp.asarray(progress, size.dtype)
    if not balance:
        return jnp.broadcast_to(progress, size.shape)
    pixels = [math.prod(shape[:-1]) for shape in model.backbone.latent_shapes]
    alpha = jnp.asarray([n / pixels.count(n) for n in pixels], size.dtype)
    share = jax.lax.stop_gradient((size + 0.01) / alpha)
    return jnp.where(progress < 1, progress * share / share.mean(), 1)


def freeze_all_but_encoder(model: Model, params: Params) -> Params:
    """Returns `params`, with gradients that reach the encoder alone.

    These are the top-level modules that the backbone's `encoder_modules` names.

    Example:
      >>> import jebm
      >>> backbone = {"encoder_widths": (16,)}
      >>> model = jebm.build({"image_shape": (8, 8, 1), "backbone": backbone})
      >>> params = jebm.init(jax.random.key(0), model)
      >>> model.backbone.encoder_modules
      ('encoder', 'posteriors_0', 'posteriors_1')
      >>> frozen = freeze_all_but_encoder(model, params)
    """
    frozen = jax.lax.stop_gradient(params)
    variables = params.backbone["params"]
    encoder = {name: variables[name] for name in model.backbone.encoder_modules}
    backbone = frozen.backbone | {"params": frozen.backbone["params"] | encoder}
    return Params(backbone, frozen.energy)


def prior_terms(
    model: Model,
    params: Params,
    latents: Latents,
    energy_grad_scale: jax.typing.ArrayLike = 1.0,
) -> PriorTerms:
    """Computes terms of prior samples z-, already T(eps-); no gradient reaches z-.

    `energy_grad_scale`, as of `variational_terms`, scales the gradient of log Z that
    reaches the backbone.

    Example:
      >>> import jebm
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> params = jebm.init(jax.random.key(0), model)
      >>> latents = jebm.sample(jax.random.key(1), model, params, 4).latents
      >>> prior_terms(model, params, latents).loss().shape
      (4,)
    """
    latents = jax.lax.stop_gradient(latents)
    seen = params._replace(backbone=scale_gradient(params.backbone, energy_grad_scale))
    return PriorTerms(
        log_prior(latents, priors_at(model, seen, latents)),
        energy(model, seen, latents),
    )


def noise_contrastive_loss(positive: jax.Array, negative: jax.Array) -> jax.Array:
    """Computes -log s(-E(z+)) - log s(E(z-)), s the sigmoid, z- of the Gaussian prior.

    The logistic loss of telling posterior from prior samples: least where exp(-E) is
    the ratio of the aggregate posterior to p_beta, so that Z = 1. It needs no chains.
    It is nearly blind where the two hardly overlap, so a start for the learning above
    and not its end. (arXiv 2010.02917)

    Args:
      positive: E(z+), [B], nats.
      negative: E(z-), [B], nats.

    Returns:
      [B], nats; 2 log 2 at E = 0.

    Example:
      >>> noise_contrastive_loss(jnp.zeros(2), jnp.zeros(2)).round(4)
      Array([1.3863, 1.3863], dtype=float32)
    """
    return jax.nn.softplus(positive) + jax.nn.softplus(-negative)


def energy_gradient_penalty(model: Model, params: Params, eps: Latents) -> jax.Array:
    """Returns |grad_eps E(T(eps))|^2, [B]; its gradient reaches the energy only.

    A chain follows an energy that is smooth on the scale of its step: this keeps the
    drift of the eps-chain, and so the runaway of energy and sampler, in bounds.

    Args:
      model: the model.
      params: its parameters.
      eps: positions in eps-space, bottom to top, each [B, *shape_i].

    Returns:
      [B], nats squared.

    Example:
      >>> import jebm
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> params = jebm.init(jax.random.key(0), model)
      >>> energy_gradient_penalty(model, params, (jnp.ones((2, 16)), jnp.ones((2, 8))))
      Array([0., 0.], dtype=float32)
    """
    params = Params(jax.lax.stop_gradient(params.backbone), params.energy)

    def total_energy(eps):
        def transported(backbone):
            return top_down(
                backbone, eps[0].shape[0], transport(eps), remat=model.remat
            )

        latents, _, state = nn.apply(transported, model.backbone)(params.backbone)
        energies = energy(model, params, latents, state)
        return jnp.sum(energies)  # examples are independent

    grads = jax.grad(total_energy)(jax.lax.stop_gradient(eps))
    return sum(jnp.sum(g.reshape(g.shape[0], -1) ** 2, axis=-1) for g in grads)


def scale_gradient(tree: Any, scale: jax.typing.ArrayLike) -> Any:
    """Returns `tree`, with its gradient scaled; values do not depend on `scale`.

    Example:
      >>> jax.grad(lambda x: scale_gradient(x, 0.5) ** 2)(3.0).item()
      3.0
    """
    frozen = jax.lax.stop_gradient(tree)
    return jax.tree.map(lambda x, x0: x0 + scale * (x - x0), tree, frozen)
