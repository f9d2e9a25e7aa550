"""One training step: state, optimiser, chains, surrogate loss, averaged parameters."""

import dataclasses
import enum
from types import MappingProxyType
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct, traverse_util
from flax.training import train_state

import jebm
from experiments import datasets, parallel
from experiments.command_line import ConfigError
from experiments.guard import GuardState
from jebm import objectives, spectral
from jebm.diagnostics import chain_diagnostics
from jebm.hierarchy import Latents, infer
from jebm.langevin import global_norm
from jebm.sampling import (
    UNTILTED,
    draw_noise,
    example_keys,
    run_chains,
    start_positions,
    to_eps,
    to_positions,
)


class Role(enum.IntEnum):
    """What noise is for: folded into the seed's key, so that no two roles share it."""

    INIT = 0
    POSTERIOR = 1
    PRIOR = 2
    PICTURES = 3
    FIGURES = 4
    DIAGNOSTICS = 5
    EVALUATION = 6
    RESTART = 7
    SPECTRAL = 8


class TrainState(train_state.TrainState):
    """Step, parameters and optimiser state (of Flax), and what else a step needs."""

    ema: jebm.Params = struct.field(kw_only=True)
    guard: GuardState = struct.field(kw_only=True)
    # Where the persistent prior chains stand: per layer [B, slots, *shape_i], visited
    # one slot a step; () where every chain starts anew. Sharded with the examples.
    pool: Latents = struct.field(kw_only=True)
    # Of `jebm.spectral`, for "backbone" where its spectral norms are penalised and for
    # "energy" where those are bounded; else {}.
    vectors: dict[str, spectral.Vectors] = struct.field(kw_only=True)

    def apply_gradients(
        self, *, grads: jebm.Params, statistics: dict, **kwargs
    ) -> "TrainState":
        """Takes one step of the optimiser, the energies' scaled by 2^-rescues.

        `grads` are of the parts that learn, {} for a frozen backbone. `statistics`
        replace those of the backbone's batches, {} where it has none.
        """
        learned = _learned(self.params, frozen=not grads.backbone)
        updates, opt_state = self.tx.update(grads, self.opt_state, learned)
        scale = jnp.exp2(-self.guard.rescues.astype(jnp.float32))
        energy = jax.tree.map(lambda u: u * scale.astype(u.dtype), updates.energy)
        learned = optax.apply_updates(learned, updates._replace(energy=energy))
        backbone = self.params.backbone | learned.backbone | statistics
        params = learned._replace(backbone=backbone)
        return self.replace(
            step=self.step + 1, params=params, opt_state=opt_state, **kwargs
        )


def _learned(params: jebm.Params, frozen: bool) -> jebm.Params:
    """What the optimiser sees: without the backbone where that is frozen."""
    return params._replace(backbone={}) if frozen else params


OPTIMIZERS = {"adam": optax.scale_by_adam, "adamax": optax.scale_by_adamax}


def create_optimizer(learning) -> optax.GradientTransformation:
    """One for the backbone and Adam for the energies, each with its own rate.

    Variables of other kinds than parameters are not optimised.
    """

    def chain(name, learning_rate, weight_decay):
        warm_up = learning.warmup_steps
        fall = optax.cosine_decay_schedule(
            learning_rate, learning.num_steps - warm_up, learning.final_lr_fraction
        )

        def schedule(step):
            rise = learning_rate * (step / max(warm_up, 1))
            return jnp.where(step < warm_up, rise, fall(step - warm_up))

        scale = OPTIMIZERS[name](learning.adam_b1, learning.adam_b2, learning.adam_eps)
        return optax.chain(
            optax.clip_by_global_norm(learning.clip_norm),
            optax.add_decayed_weights(weight_decay)
            if weight_decay
            else optax.identity(),
            scale,
            optax.scale_by_learning_rate(schedule),
        )

    optimizers = {
        "backbone": chain(
            learning.optimizer, learning.backbone_lr, learning.weight_decay
        ),
        "energy": chain("adam", learning.energy_lr, learning.energy_weight_decay),
        "fixed": optax.set_to_zero(),
    }

    def labels(params):
        kinds = {
            part: {k: part if k == "params" else "fixed" for k in variables}
            for part, variables in params._asdict().items()
        }
        return jebm.Params(**kinds)

    return optax.multi_transform(optimizers, labels)


def create_state(
    key: jax.Array, learning, model: jebm.Model, backbone=None
) -> TrainState:
    """The state before the first step, of all devices; `key` is that of the seed.

    `backbone` are the variables of one that is frozen.
    """
    params = jebm.init(jax.random.fold_in(key, Role.INIT), model)
    if backbone is not None:
        params = params._replace(backbone=backbone)
    tx = create_optimizer(learning)
    return TrainState(
        # An array, as Flax has it later: a Python integer is no checkpoint's template.
        step=jnp.zeros((), jnp.int32),
        apply_fn=None,
        params=params,
        tx=tx,
        opt_state=tx.init(_learned(params, learning.method == "two_stage")),
        ema=params,
        guard=GuardState.start(),
        pool=create_pool(key, learning, model, params),
        vectors=create_vectors(key, learning, model, params),
    )


def create_pool(key, learning, model: jebm.Model, params: jebm.Params) -> Latents:
    """The persistent prior chains before their first step; () where there are none."""
    if model.energy is None or not learning.persistent_chains:
        return ()
    key = jax.random.fold_in(key, Role.RESTART)
    keys = jax.random.split(key, learning.persistent_chains)
    positions = start_positions(keys, model, params, model.chains.prior)
    return jax.tree.map(
        lambda p: p.reshape(learning.batch_size, -1, *p.shape[1:]), positions
    )


def create_vectors(key, learning, model: jebm.Model, params: jebm.Params):
    """The vectors of `jebm.spectral` before the first step, those that are due."""
    key, vectors = jax.random.fold_in(key, Role.SPECTRAL), {}
    if learning.spectral_penalty:
        x = jnp.zeros((1, *model.image_shape), jebm.model.float_dtype(params))
        kernels = jax.eval_shape(
            lambda: objectives.variational_terms(
                model, params, x, jax.random.split(key, 1)
            ).written.get("kernels")
        )
        if kernels is None:
            raise ConfigError(
                "learning.spectral_penalty needs a backbone that tells its kernels, "
                f"got {type(model.backbone).__name__}"
            )
        vectors["backbone"] = spectral.start(key, kernels)
    if learning.energy_spectral_bound and model.energy is not None:
        kernels = spectral.kernels_of(params.energy["params"])
        vectors["energy"] = spectral.start(jax.random.fold_in(key, 1), kernels)
    return vectors


def make_train_step(learning, model: jebm.Model):
    """Returns `step(key, state, images) -> (state, metrics)`, for `parallel.pmap`.

    Noise is keyed by (seed, role, step, index in the global batch): it is the same on
    any number of devices. `key` is that of the seed.
    """

    frozen = learning.method == "two_stage"  # the backbone

    def train_step(key, state, images):
        x = _images(state, images)
        keys_positive = _keys(key, Role.POSTERIOR, state, x)
        metrics, positive, negative = {}, None, None
        if model.chains.posterior.num_steps:
            positive, info = run_chains(
                keys_positive, model, state.params, model.chains.posterior, x=x
            )
            metrics["posterior_grad_norm"] = info.grad_norm
        elif frozen:
            positive = encode(model, state.params, x, keys_positive)
        if model.energy is not None:
            chain = model.chains.prior
            keys = _keys(key, Role.PRIOR, state, x)
            start = None
            if state.pool:
                restart = jax.vmap(
                    lambda key: jax.random.bernoulli(key, learning.restart_fraction)
                )(_keys(key, Role.RESTART, state, x))
                start = _take(state, restart, keys, model)
                chain = dataclasses.replace(chain, num_steps=learning.persistent_steps)

            def tilted(params):
                latents, info = run_chains(keys, model, params, chain, start=start)
                return latents, info.grad_norm

            def untilted(params):
                latents, _ = run_chains(keys, model, params, UNTILTED)
                return latents, jnp.zeros_like(latents[0], shape=keys.shape)

            if learning.nce_steps:
                is_nce = state.step < learning.nce_steps
                drawn = jax.lax.cond(is_nce, untilted, tilted, state.params)
            else:
                drawn = tilted(state.params)
            negative, metrics["prior_grad_norm"] = drawn
            if state.pool:
                position = to_positions(model, state.params, negative, chain.space)
                state = state.replace(pool=_put(state, position))

        def loss(learned):
            params = learned._replace(backbone=state.params.backbone | learned.backbone)
            return objective(
                model, params, x, keys_positive, positive, negative, learning,
                state.step, state.vectors,
            )  # fmt: skip

        learned = _learned(state.params, frozen)
        grads, (terms, found) = jax.grad(loss, has_aux=True)(learned)
        metrics = jax.tree.map(jnp.mean, metrics | terms)
        grads, metrics, statistics = parallel.mean((grads, metrics, found.statistics))
        state = state.apply_gradients(
            grads=grads,
            statistics=statistics,
            vectors=state.vectors | found.vectors,
        )
        if "energy" in state.vectors:
            state = bound_energy(state, learning.energy_spectral_bound)
        # Short runs should not average in the initial parameters.
        decay = jnp.minimum(learning.ema_decay, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(
            lambda old, new: old + (1 - decay).astype(old.dtype) * (new - old),
            _learned(state.ema, frozen),
            _learned(state.params, frozen),
        )
        # Statistics are averages already, and what is frozen stays to the bit.
        ema = ema._replace(backbone=state.ema.backbone | ema.backbone | statistics)
        metrics["grad_norm"] = global_norm(grads)
        return state.replace(ema=ema), metrics

    return train_step


def encode(model, params, x, keys) -> Latents:
    """z ~ q(z | x) of the encoder, from `keys` [B]."""
    noise = draw_noise(keys, model, params)
    return nn.apply(lambda b: infer(b, x, noise)[0], model.backbone)(params.backbone)


def bound_energy(state: TrainState, bound: float) -> TrainState:
    """The state with no kernel of the energies beyond the spectral norm `bound`."""
    params, vectors = spectral.bounded(
        state.params.energy["params"], state.vectors["energy"], bound
    )
    energy = state.params.energy | {"params": params}
    return state.replace(
        params=state.params._replace(energy=energy),
        vectors=state.vectors | {"energy": vectors},
    )


def _take(state, restart, keys, model):
    """Where the chains of this step's slot go on, or start anew where `restart`."""
    fresh = start_positions(keys, model, state.params, model.chains.prior)

    def pick(pool, new):
        old = pool[:, state.step % pool.shape[1]]
        return jnp.where(restart.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(pick, state.pool, fresh)


def _put(state, position):
    """The pool with the chains of this step's slot at `position`."""
    return jax.tree.map(
        lambda pool, new: pool.at[:, state.step % pool.shape[1]].set(new),
        state.pool,
        position,
    )


def distribute(state: TrainState, devices) -> TrainState:
    """Places a state: its chains split over the devices, the rest copied to each."""
    pool = parallel.shard(state.pool, devices)
    return parallel.replicate(state.replace(pool=()), devices).replace(pool=pool)


def collect(state: TrainState) -> TrainState:
    """The inverse of `distribute`, as NumPy arrays."""
    pool = parallel.unshard(state.pool)
    return parallel.unreplicate(state.replace(pool=())).replace(pool=pool)


class Found(NamedTuple):
    """What a pass has found besides its loss, to go on from."""

    statistics: dict  # collection "batch_stats" of the backbone, if it has one
    vectors: dict[str, spectral.Vectors]  # "backbone", where its norms are penalised


def objective(
    model,
    params,
    x,
    keys,
    positive,
    negative,
    learning,
    step=0,
    vectors=MappingProxyType({}),
):
    """The surrogate loss of `jebm.objectives`, averaged, with its penalties.

    Of two stages, the second: E(z+) - E(z-) alone, or in its first `nce_steps`
    `jebm.objectives.noise_contrastive_loss`.

    `positive` are samples of the posterior chain; None where the encoder alone draws,
    from `keys` [B]. Of samples that a chain refined, generator and energies learn as by
    maximum likelihood, and the encoder from its own.
    `negative` is None for the Gaussian twin, whose prior has no negative phase.
    Returns the loss, and a dict of terms in nats with what was `Found`.
    """
    terms, loss, share, found = {}, 0.0, 1.0, Found({}, {})
    if learning.method == "two_stage":
        plus, minus = (jebm.energy(model, params, z) for z in (positive, negative))
        loss, terms = _contrast(model, params, plus, minus, negative, learning)
        contrast = (plus - minus).mean()
        if learning.nce_steps:
            nce = objectives.noise_contrastive_loss(plus, minus).mean()
            contrast = jnp.where(step < learning.nce_steps, nce, contrast)
        loss += contrast
        return loss, (terms | {"loss_nats": loss}, found)
    if learning.method == "variational":
        held = params
        if positive is not None:
            held = objectives.hold_all_but_encoder(model, params)
        else:
            share = learning.energy_share
        plus = objectives.variational_terms(model, held, x, keys, learning.energy_share)
        warm_up, weights = 1.0, None
        if learning.kl_warmup_steps:
            warm_up = jnp.clip(step / learning.kl_warmup_steps, 1e-4, 1.0)
            weights = jnp.full_like(plus.layers, warm_up, shape=plus.layers.shape[1:])
            if learning.kl_balance:
                weights = objectives.balanced_kl_weights(model, plus.layers, warm_up)
        loss += plus.loss(weights).mean()
        terms["kl_nats"] = plus.log_q - plus.log_prior  # of q from p_beta
        new_vectors = {}
        if learning.spectral_penalty:
            each, new = spectral.norms(plus.written["kernels"], vectors["backbone"])
            norms = sum(jax.tree.leaves(each), _norm_scales(params.backbone["params"]))
            new_vectors = {"backbone": new}
            loss += _spectral_weight(learning, warm_up) * norms
            terms["spectral_norms"] = norms
        statistics = {k: v for k, v in plus.written.items() if k == "batch_stats"}
        found = Found(statistics, new_vectors)
    if positive is not None:
        plus = objectives.positive_terms(model, params, x, positive)
        loss += plus.loss().mean()
    terms |= {
        "log_likelihood_nats": plus.log_likelihood,
        "log_prior_positive_nats": plus.log_prior,
    }
    if negative is not None:
        minus = objectives.negative_terms(model, params, negative, share)
        loss += minus.loss().mean()
        penalty, contrast = _contrast(
            model, params, plus.energy, minus.energy, negative, learning
        )
        loss += penalty
        terms |= contrast | {"log_prior_negative_nats": minus.log_prior}
    return loss, (terms | {"loss_nats": loss}, found)


def _contrast(model, params, plus, minus, negative, learning):
    """Penalties of the energies at z+ and z-, each [B], and what to watch of them."""
    loss = learning.energy_penalty * ((plus**2).mean() + (minus**2).mean())
    if not _is_zero(learning.gradient_penalty):
        penalty = objectives.energy_gradient_penalty(model, params, negative)
        loss += learning.gradient_penalty * penalty.mean()
    eps = to_eps(model, params, negative)
    square = jnp.concatenate([e.reshape(e.shape[0], -1) ** 2 for e in eps], axis=1)
    return loss, {
        "energy_positive_nats": plus,
        "energy_negative_nats": minus,
        "energy_gap_nats": minus.mean() - plus.mean(),
        # Of the noise behind the prior samples: 1 under the Gaussian prior.
        "prior_eps_square": square.mean(axis=1),
    }


def _norm_scales(params):
    """The largest scale of each normalisation, summed."""
    leaves = traverse_util.flatten_dict(params)
    scales = [jnp.abs(v).max() for path, v in leaves.items() if path[-1] == "scale"]
    return sum(scales, 0.0)


def _spectral_weight(learning, warm_up):
    last, first = learning.spectral_penalty, learning.spectral_penalty_start
    return last * (first / last) ** (1 - warm_up) if first else last


def make_diagnose(model: jebm.Model):
    """Returns `diagnose(key, state, images) -> metrics`, for `parallel.pmap`.

    Acceptance under MALA and stiffness of the chains of `jebm.diagnostics`, averaged
    over the images: a few per device are enough.
    """

    def diagnose(key, state, images):
        x = _images(state, images)
        keys = _keys(key, Role.DIAGNOSTICS, state, x)
        chains = {}
        if model.chains.posterior.num_steps:
            chains["posterior"] = (model.chains.posterior, x)
        if model.energy is not None:
            chains["prior"] = (model.chains.prior, None)
        metrics = {}
        for name, (chain, given) in chains.items():
            found = chain_diagnostics(keys, model, state.params, chain, x=given)
            metrics[f"{name}_acceptance"] = found.acceptance.mean()
            metrics[f"{name}_stiffness"] = found.stiffness.mean()
        return parallel.mean(metrics)

    return diagnose


def _is_zero(weight):
    """Whether a term can be left out; a weight that is traced is not known to be 0."""
    return isinstance(weight, int | float) and weight == 0


def _images(state, images):
    return datasets.to_unit(images).astype(jebm.model.float_dtype(state.params))


def _keys(key, role, state, x):
    key = jax.random.fold_in(jax.random.fold_in(key, role), state.step)
    return example_keys(key, parallel.example_index(x.shape[0]))
