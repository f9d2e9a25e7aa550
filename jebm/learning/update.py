"""One update: draw z+ and z-, differentiate the loss, step, average."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jebm import chains, checks, persistent, spectral
from jebm.hierarchy import Latents, has_encoder
from jebm.kernels import ANCESTRAL
from jebm.langevin import global_norm
from jebm.learning.losses import Batch, Found
from jebm.learning.state import LearnerState, Role, Rule
from jebm.mala import adapted_step
from jebm.model import Params, float_dtype, merge, trainable


def update(
    rule: Rule,
    loss: Callable[[Params, Batch], tuple[jax.Array, Found]],
    key: jax.Array,
    state: LearnerState,
    x: jax.Array | Latents,
    index: jax.Array | None = None,
) -> tuple[LearnerState, dict[str, jax.Array]]:
    """Takes one step of a learning rule: `Learner.update`."""
    checks.key(key)
    checks.instance("state", state, LearnerState)
    checks.params(rule.model, state.params)
    x = _given(rule, state, x)
    num = len(jax.tree.leaves(x)[0])
    index = jnp.arange(num) if index is None else index
    checks.index(index, num)
    positive_keys, prior_keys, reinit_keys = (
        chains.example_keys(
            jax.random.fold_in(jax.random.fold_in(key, role), state.step), index
        )
        for role in (Role.POSTERIOR, Role.PRIOR, Role.REINIT)
    )
    positive, info = _posterior_samples(rule, positive_keys, state, x)
    negative = eps = None
    if rule.model.energy is not None:
        checks.persistent(rule.options.persistent_chains, num, state.persistent)
        negative, eps, moved, prior_info = _prior_samples(
            rule, prior_keys, reinit_keys, state
        )
        state, info = dataclasses.replace(state, persistent=moved), info | prior_info
    batch = Batch(x, positive_keys, positive, negative, eps, state.step, state.spectral)

    def surrogate(learned):
        return loss(merge(state.params, learned), batch)

    learned = trainable(state.params, rule.frozen)
    grads, aux = jax.grad(surrogate, has_aux=True)(learned)
    info = jax.tree.map(jnp.mean, info | aux.info)
    reduce = rule.options.reduce
    grads, info, statistics = reduce((grads, info, aux.statistics))
    info["grad_norm"] = global_norm(grads)
    state, info = _adapted(rule, state, info)
    return _step(rule, state, grads, aux._replace(statistics=statistics)), info


def _given(rule, state, x):
    """Returns the images, or the latents z+ that a second stage may take instead."""
    dtype = float_dtype(state.params)
    if isinstance(x, tuple | list):
        if not rule.frozen:
            raise ValueError("x must be images: only second_stage takes latents")
        checks.latents(rule.model, x)
        return jax.tree.map(lambda z: z.astype(dtype), tuple(x))
    checks.images(rule.model, x)
    if rule.frozen and not has_encoder(rule.model.backbone):
        raise ValueError(
            "second_stage needs a backbone with an encoder, or latents instead of x"
        )
    return x.astype(dtype)


def _adapted(rule, state, info):
    """Adapts the steps of tested chains to the target, and adds them to `info`."""
    moved, target = {}, rule.options.target_acceptance
    for name, step_size in state.step_sizes.items():
        info[f"{name}_step_size"] = step_size
        # No posterior chain runs where z+ is given.
        rate = info.get(f"{name}_acceptance_rate", target)
        moved[name] = adapted_step(step_size, rate, target)
    return state.replace(step_sizes=moved), info


def _posterior_samples(rule, keys, state, x):
    """Draws z+ by the posterior chain or a frozen encoder; None if the loss does."""
    if isinstance(x, tuple):
        return x, {}
    params, chain = state.params, rule.posterior
    if chain.num_steps:
        if "posterior" in state.step_sizes:
            step_size = state.step_sizes["posterior"]
            chain = dataclasses.replace(chain, step_size=step_size)
        weights = {} if rule.frozen else rule.options.weights(state.step, x.dtype)
        end = chains.run_chains(keys, rule.model, params, chain, x=x, **weights)
        info = {"posterior_grad_norm": end.info.grad_norm}
        if chain.adjusted:
            info["posterior_acceptance_rate"] = end.info.acceptance_rate
        return end.latents, info
    if rule.frozen:
        noise = chains.draw_noise(keys, rule.model, params)
        return chains.encode(rule.model, params, x, noise)[0], {}
    return None, {}


def _prior_samples(rule, keys, reinit_keys, state):
    """Draws z-; returns it, its eps, the persistent chains and the gradients' norm."""
    model, params, chain, start = rule.model, state.params, rule.chain, None
    target = rule.options.target_acceptance
    if "prior" in state.step_sizes:
        chain = dataclasses.replace(chain, step_size=state.step_sizes["prior"])
    if state.persistent:
        start = persistent.reinitialise(
            reinit_keys,
            persistent.read(state.persistent, state.step, len(keys)),
            chains.start_positions(keys, model, params, chain),
            rule.options.reinit_probability,
        )
        num_steps = rule.options.persistent_steps or chain.num_steps
        chain = dataclasses.replace(chain, num_steps=num_steps)

    def tilted(params):
        end = chains.run_chains(keys, model, params, chain, start=start)
        acceptance = end.info.acceptance_rate.mean()
        return end.latents, end.position, end.info.grad_norm, acceptance

    def untilted(params):
        latents, eps, info, _ = chains.run_chains(keys, model, params, ANCESTRAL)
        position = latents if chain.space == "z" else eps
        # No chain has moved: as if its step was right.
        kept = jnp.asarray(target or 0.0, float_dtype(params))
        return latents, position, info.grad_norm, kept

    if rule.nce_steps:
        is_nce = state.step < rule.nce_steps
        drawn = jax.lax.cond(is_nce, untilted, tilted, params)
    else:
        drawn = tilted(params)
    latents, position, grad_norm, acceptance = drawn
    eps = chains.end_eps(model, params, chain, latents, position)
    moved = state.persistent
    if moved:
        moved = persistent.write(moved, state.step, position)
    info = {"prior_grad_norm": grad_norm}
    if target is not None:
        info["prior_acceptance_rate"] = acceptance
    return latents, eps, moved, info


def _step(rule, state, grads, aux):
    """Takes the optimiser's step, bounds the energies, averages the parameters."""
    import optax  # slow to import, and not needed to sample

    learned = trainable(state.params, rule.frozen)
    with jax.numpy_dtype_promotion("standard"):  # optax has float ** integer
        updates, opt_state = rule.optimizer.update(grads, state.opt_state, learned)
    learned = optax.apply_updates(learned, updates)
    vectors = {**state.spectral, **aux.spectral}
    if "energy" in vectors:
        bound = rule.options.energy_spectral_bound
        bounded = spectral.bounded(learned.energy, vectors["energy"], bound)
        energy, vectors["energy"] = bounded
        learned = learned._replace(energy=energy)
    step = state.step + 1
    # Short runs should not average in the initial parameters.
    decay = jnp.minimum(rule.options.ema_decay, (1 + step) / (10 + step))
    averaged = jax.tree.map(
        lambda old, new: old + (1 - decay).astype(old.dtype) * (new - old),
        trainable(state.ema, rule.frozen),
        learned,
    )
    # Statistics of batches are averages already.
    params, ema = (
        merge(Params({**old.backbone, **aux.statistics}, old.energy), new)
        for old, new in ((state.params, learned), (state.ema, averaged))
    )
    return dataclasses.replace(
        state, step=step, params=params, ema=ema, opt_state=opt_state, spectral=vectors
    )
