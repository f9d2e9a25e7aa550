"""One update: draw z+ and z-, differentiate the loss, step, average."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jebm import checks, spectral
from jebm.chains import (
    draw_noise,
    encode,
    example_keys,
    run_chains,
    start_positions,
    to_eps,
)
from jebm.kernels import ANCESTRAL
from jebm.langevin import global_norm
from jebm.learning.losses import Batch, Found, PriorSamples
from jebm.learning.state import LearnerState, Rule, merge, trainable
from jebm.model import Params, float_dtype

# What an update's key is folded with, so that no two draws share their noise.
_POSTERIOR, _PRIOR, _REINIT = 0, 1, 2


def update(
    rule: Rule,
    loss: Callable[[Params, Batch], tuple[jax.Array, Found]],
    key: jax.Array,
    state: LearnerState,
    x: jax.Array,
    index: jax.Array | None = None,
) -> tuple[LearnerState, dict[str, jax.Array]]:
    """Takes one step of a learning rule: `Learner.update`."""
    checks.key(key)
    checks.images(rule.model, x)
    x = x.astype(float_dtype(state.params))
    index = jnp.arange(x.shape[0]) if index is None else index
    positive_keys, prior_keys, reinit_keys = (
        example_keys(jax.random.fold_in(key, role), index)
        for role in (_POSTERIOR, _PRIOR, _REINIT)
    )
    positive, info = _posterior_samples(rule, positive_keys, state.params, x)
    negative = None
    if rule.model.energy is not None:
        negative, state, found = _prior_samples(rule, prior_keys, reinit_keys, state)
        info |= found
    batch = Batch(x, positive_keys, positive, negative, state.step, state.spectral)

    def surrogate(learned):
        return loss(merge(state.params, learned), batch)

    learned = trainable(state.params, rule.frozen)
    grads, found = jax.grad(surrogate, has_aux=True)(learned)
    info = jax.tree.map(jnp.mean, info | found.info)
    reduce = rule.options.reduce or (lambda tree: tree)
    grads, info, statistics = reduce((grads, info, found.statistics))
    info["grad_norm"] = global_norm(grads)
    return _step(rule, state, grads, found._replace(statistics=statistics)), info


def _posterior_samples(rule, keys, params, x):
    """z+ by the posterior chain or a frozen encoder; None: the loss draws them."""
    if rule.posterior.num_steps:
        end = run_chains(keys, rule.model, params, rule.posterior, x=x)
        return end.latents, {"posterior_grad_norm": end.info.grad_norm}
    if rule.frozen:
        noise = draw_noise(keys, rule.model, params)
        return encode(rule.model, params, x, noise)[0], {}
    return None, {}


def _prior_samples(rule, keys, reinit_keys, state):
    """z-, the state with its persistent chains moved on, and the norm of gradients."""
    model, params, chain, start = rule.model, state.params, rule.chain, None
    if state.persistent:
        start = _read(rule, keys, reinit_keys, state)
        num_steps = rule.options.persistent_steps or chain.num_steps
        chain = dataclasses.replace(chain, num_steps=num_steps)

    def tilted(params):
        end = run_chains(keys, model, params, chain, start=start)
        return end.latents, end.position, end.info.grad_norm

    def untilted(params):
        latents, eps, info, _ = run_chains(keys, model, params, ANCESTRAL)
        return latents, latents if chain.space == "z" else eps, info.grad_norm

    if rule.nce_steps:
        is_nce = state.step < rule.nce_steps
        drawn = jax.lax.cond(is_nce, untilted, tilted, params)
    else:
        drawn = tilted(params)
    latents, position, grad_norm = drawn
    if state.persistent:
        state = state.replace(persistent=_write(state, position))
    eps = to_eps(model, params, latents) if chain.space == "z" else position
    return PriorSamples(latents, eps), state, {"prior_grad_norm": grad_norm}


def _read(rule, keys, reinit_keys, state):
    """Where the chains of this update's slot stand, or start anew."""
    fresh = start_positions(keys, rule.model, state.params, rule.chain)
    probability = rule.options.reinit_probability
    anew = jax.vmap(lambda key: jax.random.bernoulli(key, probability))(reinit_keys)

    def read(chains, new):
        slots = _slots(chains, new.shape[0])
        old = slots[:, state.step % slots.shape[1]]
        return jnp.where(anew.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(read, state.persistent, fresh)


def _write(state, position):
    """The chains, with those of this update's slot at `position`."""

    def write(chains, new):
        slots = _slots(chains, new.shape[0])
        slots = slots.at[:, state.step % slots.shape[1]].set(new)
        return slots.reshape(chains.shape)

    return jax.tree.map(write, state.persistent, position)


def _slots(chains, batch_size):
    """Persistent chains [num, ...] as those of each example, [B, num / B, ...]."""
    if chains.shape[0] % batch_size:
        raise ValueError(
            "persistent_chains must be a multiple of the batch size, got "
            f"{chains.shape[0]} for {batch_size} images"
        )
    return chains.reshape(batch_size, -1, *chains.shape[1:])


def _step(rule, state, grads, found):
    """Takes the optimiser's step, bounds the energies, averages the parameters."""
    import optax  # slow to import, and not needed to sample

    learned = trainable(state.params, rule.frozen)
    with jax.numpy_dtype_promotion("standard"):  # optax has float ** integer
        updates, opt_state = rule.optimizer.update(grads, state.opt_state, learned)
    learned = optax.apply_updates(learned, updates)
    vectors = state.spectral | found.spectral
    if "energy" in vectors:
        bound = rule.options.energy_spectral_bound
        energy, energy_vectors = spectral.bounded(
            learned.energy, vectors["energy"], bound
        )
        learned = learned._replace(energy=energy)
        vectors |= {"energy": energy_vectors}
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
        merge(old, new)._replace(backbone=merge(old, new).backbone | found.statistics)
        for old, new in ((state.params, learned), (state.ema, averaged))
    )
    return state.replace(
        step=step, params=params, ema=ema, opt_state=opt_state, spectral=vectors
    )
