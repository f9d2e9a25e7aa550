"""The learners: maximum likelihood, variational, and the second of two stages.

A learner is two pure functions on explicit pytrees, which run under jit, vmap (many
seeds at once) and pmap: see `Learner`. (arXiv 2306.06323)
"""

import functools
from typing import TYPE_CHECKING

import jax
import numpy as np

from jebm import checks
from jebm.hierarchy import has_encoder, has_normal_posterior
from jebm.kernels import Chain, Chains
from jebm.learning import losses
from jebm.learning.options import Options
from jebm.learning.state import Learner, Rule, start
from jebm.learning.update import update
from jebm.model import Model, check_chains, with_compute_dtype
from jebm.warm_up import WarmUp

if TYPE_CHECKING:  # slow to import, and not needed to sample
    import optax


def maximum_likelihood(
    model: Model,
    chain: Chain | None,
    optimizer: "optax.GradientTransformation",
    options: Options = Options(),
) -> Learner:
    """Learns generator, hierarchy and energies from a posterior chain.

        loss = mean[ -(log p(x|z+) + log p_beta(z+) - E(z+)) ]
             + mean[   log p_beta(z-) - E(z-) ],     z+ ~ p(z|x),  z- ~ p(z), held fixed

    A model without energy learns as the Gaussian twin.

    With an encoder the posterior chain starts at its draws, and the encoder learns to
    draw what the chains end at: the loss gains -log q(z+|x), and no bound.
    `Options.posterior_tilt` is the share of E that the posterior, and so the generator,
    feels.

    Args:
      model: the model.
      chain: of the prior; None for the model's.
      optimizer: of a `Params` of the "params" of backbone and energy, so that
        `optax.multi_transform` with the labels `Params("backbone", "energy")` gives
        each its own.
      options: with `posterior` for another posterior chain than the model's.

    Returns:
      A `Learner`: the functions `init` and `update`.

    Raises:
      ValueError: for arguments that cannot work together.

    Example:
      >>> import jebm, optax
      >>> model = jebm.build({"image_shape": (8, 8, 1)})
      >>> learner = maximum_likelihood(model, jebm.Langevin(5, 0.3), optax.adam(1e-3))
      >>> learner.init(jax.random.key(0)).step.item()
      0
    """
    rule = _rule(model, chain, optimizer, options)
    if not rule.posterior.num_steps:
        start = "encoder" if has_encoder(model.backbone) else "normal"
        raise ValueError(
            "maximum_likelihood needs a posterior chain with steps, such as "
            f"Options(posterior=jebm.Langevin(20, 0.1, start={start!r})), got "
            f"{rule.posterior}"
        )
    if has_encoder(model.backbone):
        if not has_normal_posterior(model.backbone):
            raise ValueError(
                "maximum_likelihood needs an encoder whose q is normal given the "
                "layers above"
            )
        if rule.posterior.start != "encoder":
            raise ValueError(
                "maximum_likelihood with an encoder needs a posterior chain that "
                f"starts at 'encoder', got {rule.posterior}"
            )
    return _learner(rule, losses.maximum_likelihood_loss, rule.model, options)


def variational(
    model: Model,
    chain: Chain | None,
    optimizer: "optax.GradientTransformation",
    options: Options = Options(),
    *,
    warm_up: WarmUp = WarmUp(),
    energy_grad_scale: jax.typing.ArrayLike = 0.0,
) -> Learner:
    """Learns generator, hierarchy, energies and encoder together.

        loss = mean[ -(log p(x|z+) + log p_beta(z+) - E(z+) - log q(z+|x)) ]
             + mean[   log p_beta(z-) - E(z-) ],           z+ ~ q(z|x),  z- ~ p(z)

    The posterior chain starts at the encoder; its steps, if any, refine the draws that
    generator and energies learn from. A model without energy is a plain VAE.

    `warm_up` is that of the divergence of q from p_beta. `energy_grad_scale` is the
    share of the energy's gradient, in [0, 1], that reaches generator and encoder. At 0
    these learn as a VAE while the energies tilt its prior; with more, q can climb f
    faster than the prior's chain follows.

    Args:
      model: the model; its backbone has an encoder.
      chain, optimizer, options: of `maximum_likelihood`.
      warm_up: of the divergence, and of spectral penalties.
      energy_grad_scale: in [0, 1]; may be traced.

    Returns:
      A `Learner`: the functions `init` and `update`.

    Raises:
      ValueError: for arguments that cannot work together.

    Example:
      >>> import jax.numpy as jnp, jebm, optax
      >>> backbone = jebm.backbones.Vector(encoder_widths=(16,))
      >>> model = jebm.Model((8, 8, 1), backbone, jebm.energies.Joint((16,)))
      >>> learner = variational(model, jebm.Langevin(5, 0.3), optax.adam(1e-3))
      >>> state, x = learner.init(jax.random.key(0)), jnp.full((2, 8, 8, 1), 0.5)
      >>> state, info = learner.update(jax.random.key(1), state, x)
      >>> state.step.item(), info["loss_nats"].shape
      (1, ())
    """
    checks.number("energy_grad_scale", energy_grad_scale, most=1)
    checks.instance("warm_up", warm_up, WarmUp)
    rule = _rule(model, chain, optimizer, options, encoder=True, warm_up=warm_up)
    if not rule.posterior.num_steps:
        _without_chain(options, "variational without steps of the posterior chain")
    arguments = rule.model, options, warm_up, energy_grad_scale
    return _learner(rule, losses.variational_loss, *arguments)


def second_stage(
    model: Model,
    chain: Chain | None,
    optimizer: "optax.GradientTransformation",
    options: Options = Options(),
    *,
    nce_steps: int = 0,
) -> Learner:
    """Learns the energies alone, on a frozen backbone: `init(key, params.backbone)`.

        loss = mean E(z+) - mean E(z-),      z+ ~ q(z|x),  z- ~ p(z), held fixed

    `update` takes images, or in their place latents z+ drawn already, a tuple bottom to
    top of [B, *shape_i]: a frozen encoder need not run at every update, and a backbone
    without one is enough.

    In the first `nce_steps` updates the energies tell z+ from draws of the Gaussian
    prior, without chains: `objectives.noise_contrastive_loss`. (arXiv 2010.02917)

    Args:
      model: the model, with an energy.
      chain, optimizer, options: of `maximum_likelihood`; the optimiser has the energy's
        "params" alone to learn.
      nce_steps: updates without chains, at first.

    Returns:
      A `Learner`: the functions `init` and `update`.

    Raises:
      ValueError: for arguments that cannot work together.

    Example:
      >>> import jebm, optax
      >>> model, pretrained = jebm.load_pretrained("digits")
      >>> learner = second_stage(model, None, optax.adam(1e-3))
      >>> state = learner.init(jax.random.key(0), pretrained.backbone)
    """
    checks.integer("nce_steps", nce_steps)
    encoder = has_encoder(model.backbone)
    rule = _rule(model, chain, optimizer, options, encoder=encoder, frozen=True)
    rule = rule._replace(nce_steps=nce_steps)
    _without_chain(options, "second_stage")
    if model.energy is None:
        raise ValueError("second_stage learns energies alone, and the model has none")
    return _learner(rule, losses.second_stage_loss, rule.model, options, nce_steps)


def _without_chain(options, name):
    """Refuses options of a posterior chain that the learner does not run."""
    for field in ("posterior_tilt", "tilt_warmup_steps", "likelihood_warmup_steps"):
        value = getattr(options, field)
        if isinstance(value, jax.Array) or value != getattr(Options, field):
            raise ValueError(f"{name} does not take {field}, got {value!r}")


def _rule(model, chain, optimizer, options, encoder=False, **others):
    checks.instance("model", model, Model)
    checks.instance("options", options, Options)
    checks.optimizer(optimizer)
    model = with_compute_dtype(model, options.compute_dtype)
    chain = checks.chain(chain, model.chains.prior, "chain")
    posterior = checks.chain(options.posterior, model.chains.posterior, "posterior")
    check_chains(model.backbone, Chains(chain, posterior))
    runs = model.energy is not None
    if runs and options.target_acceptance is not None and not chain.adjusted:
        raise ValueError(
            "target_acceptance needs a prior chain with a Metropolis test, such as "
            f"jebm.MALA(), got {chain}"
        )
    if encoder and not has_encoder(model.backbone):
        raise ValueError("this learner needs a backbone with an encoder")
    if encoder and posterior.start != "encoder":
        raise ValueError(f"the posterior must start at 'encoder', got {posterior}")
    return Rule(model, chain, posterior, optimizer, options, **others)


def _learner(rule, loss, *arguments):
    # Compiled, so that a plain loop is fast; inside a caller's jit nothing changes.
    step = jax.jit(functools.partial(update, rule, functools.partial(loss, *arguments)))

    def checked(key, state, x, index=None):
        if isinstance(x, np.ndarray):  # its values are known without waiting
            checks.images(rule.model, x)
        return step(key, state, x, index)

    return Learner(functools.partial(start, rule), checked)
