"""The learner of a configuration: its optimiser, its noise, and the run's state.

The learning rule itself is `jebm.learning`; this module says which one a config asks
for, and takes its steps on the devices of `experiments.parallel`.
"""

import enum

import jax
import jax.numpy as jnp
import optax
from flax import struct

import jebm
from experiments import datasets, parallel
from experiments.command_line import ConfigError
from experiments.guard import GuardState
from jebm.chains import example_keys
from jebm.diagnostics import chain_diagnostics
from jebm.learning import Learner, LearnerState
from jebm.model import float_dtype


class Role(enum.IntEnum):
    """What noise is for: folded into the seed's key, so that no two roles share it.

    Other numbers are those of `jebm.learning.state.Role`.
    """

    PICTURES = 3
    FIGURES = 4
    DIAGNOSTICS = 5
    EVALUATION = 6


@struct.dataclass
class TrainState:
    """What a run resumes from."""

    learner: LearnerState
    guard: GuardState


OPTIMIZERS = {"adam": optax.scale_by_adam, "adamax": optax.scale_by_adamax}


def create_optimizer(learning) -> optax.GradientTransformation:
    """One for the backbone and Adam for the energies, each with its own rate.

    The energies' state has a factor of their updates, for `scale_energy_updates`.
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

    energy = chain("adam", learning.energy_lr, learning.energy_weight_decay)
    factor = optax.inject_hyperparams(optax.scale)(step_size=1.0)
    backbone = chain(learning.optimizer, learning.backbone_lr, learning.weight_decay)
    return optax.multi_transform(
        {"backbone": backbone, "energy": optax.chain(energy, factor)},
        jebm.Params("backbone", "energy"),
    )


def scale_energy_updates(state: LearnerState, factor: float) -> LearnerState:
    """The state whose energies take steps of `factor` times their learning rate."""
    opt_state = optax.tree_utils.tree_set(
        state.opt_state, step_size=jnp.asarray(factor, jnp.float32)
    )
    return state.replace(opt_state=opt_state)


def create_learner(learning, model: jebm.Model, reduce=lambda tree: tree) -> Learner:
    """The learner that config.learning asks for; `reduce` as of `learning.Options`."""
    steps = learning.persistent_steps if learning.persistent_chains else None
    options = jebm.learning.Options(
        persistent_chains=learning.persistent_chains,
        persistent_steps=steps,
        reinit_probability=learning.restart_fraction,
        gradient_penalty=learning.gradient_penalty,
        energy_penalty=learning.energy_penalty,
        energy_spectral_bound=learning.energy_spectral_bound,
        ema_decay=learning.ema_decay,
        reduce=reduce,
    )
    arguments = model, None, create_optimizer(learning), options
    if learning.method == "two_stage":
        return jebm.second_stage(*arguments, nce_steps=learning.nce_steps)
    if learning.method == "mle":
        return jebm.maximum_likelihood(*arguments)
    warm_up = jebm.learning.WarmUp(
        kl_steps=learning.kl_warmup_steps,
        kl_balance=learning.kl_balance,
        spectral_penalty=learning.spectral_penalty,
        spectral_penalty_start=learning.spectral_penalty_start,
    )
    return jebm.variational(
        *arguments, warm_up=warm_up, energy_grad_scale=learning.energy_share
    )


def create_state(
    key: jax.Array, learning, model: jebm.Model, backbone=None
) -> TrainState:
    """The state before the first step, of all devices; `key` is that of the seed.

    `backbone` are the variables of one that is frozen.
    """
    try:
        state = create_learner(learning, model).init(key, backbone)
    except ValueError as error:
        raise ConfigError(f"learning: {error}") from error
    return TrainState(state, GuardState.start())


def make_train_step(learning, model: jebm.Model):
    """Returns `step(key, state, images) -> (state, metrics)`, for `parallel.pmap`.

    Noise is keyed by (seed, role, step, index in the global batch): it is the same on
    any number of devices. `key` is that of the seed.
    """
    learner = create_learner(learning, model, reduce=parallel.mean)

    def train_step(key, state, images):
        index = parallel.example_index(images.shape[0])
        after, info = learner.update(key, state.learner, _images(state, images), index)
        return state.replace(learner=after), info

    return train_step


def distribute(state: TrainState, devices) -> TrainState:
    """Places a state: its chains split over the devices, the rest copied to each."""
    chains = parallel.shard(state.learner.persistent, devices)
    return _with_chains(parallel.replicate(_with_chains(state, ()), devices), chains)


def collect(state: TrainState) -> TrainState:
    """The inverse of `distribute`, as NumPy arrays."""
    chains = parallel.unshard(state.learner.persistent)
    return _with_chains(parallel.unreplicate(_with_chains(state, ())), chains)


def _with_chains(state, chains):
    return state.replace(learner=state.learner.replace(persistent=chains))


def make_diagnose(model: jebm.Model):
    """Returns `diagnose(key, state, images) -> metrics`, for `parallel.pmap`.

    Acceptance under MALA and stiffness of the chains of `jebm.diagnostics`, averaged
    over the images: a few per device are enough.
    """

    def diagnose(key, state, images):
        x = _images(state, images)
        key = jax.random.fold_in(key, Role.DIAGNOSTICS)
        key = jax.random.fold_in(key, state.learner.step)
        keys = example_keys(key, parallel.example_index(x.shape[0]))
        chains = {}
        if model.chains.posterior.num_steps:
            chains["posterior"] = (model.chains.posterior, x)
        if model.energy is not None:
            chains["prior"] = (model.chains.prior, None)
        metrics = {}
        for name, (chain, given) in chains.items():
            found = chain_diagnostics(keys, model, state.learner.params, chain, x=given)
            metrics[f"{name}_acceptance"] = found.acceptance_rate.mean()
            metrics[f"{name}_stiffness"] = found.stiffness.mean()
        return parallel.mean(metrics)

    return diagnose


def _images(state, images):
    return datasets.to_unit(images).astype(float_dtype(state.learner.params))
