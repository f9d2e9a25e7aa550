"""The learner of a configuration: its optimiser, its noise, and the run's state.

The learning rule itself is `jebm.learning`; this module says which one a config asks
for, and takes its steps on the devices of `experiments.runtime.parallel`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

import jebm
from experiments.data.pixels import to_unit
from experiments.errors import ConfigError
from experiments.models import active_chains
from experiments.options import Learning
from experiments.runtime import parallel
from experiments.streams import Stream
from experiments.training.monitor import MonitorState
from jebm import walkers
from jebm.chains import example_keys
from jebm.diagnostics import chain_diagnostics
from jebm.learning import Learner, LearnerState
from jebm.model import float_dtype
from jebm.walkers import Walkers


@struct.dataclass
class TrainState:
    """What a run resumes from."""

    learner: LearnerState
    monitor: MonitorState
    walkers: Walkers | tuple[()] = ()  # that tell log Z of the averages


OPTIMIZERS = {"adam": optax.scale_by_adam, "adamax": optax.scale_by_adamax}


def create_optimizer(learning: Learning) -> optax.GradientTransformation:
    """Returns one for the backbone and Adam for the energies, each with its own rate.

    The energies' state has a factor of their updates, for `scale_energy_updates`.
    """
    # Rises from 0 to 1, and falls along a cosine to final_lr_fraction.
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, 1.0, learning.warmup_steps, learning.num_steps, learning.final_lr_fraction
    )

    clip = optax.identity()
    if learning.clip_norm:
        clip = optax.clip_by_global_norm(learning.clip_norm)

    def chain(name, learning_rate, weight_decay):
        decay = optax.add_decayed_weights(weight_decay)
        scale = OPTIMIZERS[name](learning.adam_b1, learning.adam_b2, learning.adam_eps)
        return optax.chain(
            clip,
            decay if weight_decay else optax.identity(),
            scale,
            optax.scale_by_learning_rate(lambda step: learning_rate * schedule(step)),
        )

    energy = chain("adam", learning.energy_lr, learning.energy_weight_decay)
    factor = optax.inject_hyperparams(optax.scale)(step_size=1.0)
    backbone = chain(learning.optimizer, learning.backbone_lr, learning.weight_decay)
    return optax.multi_transform(
        {"backbone": backbone, "energy": optax.chain(energy, factor)},
        jebm.Params("backbone", "energy"),
    )


def scale_energy_updates(state: LearnerState, factor: float) -> LearnerState:
    """Multiplies the energies' learning rate by `factor`."""
    opt_state = optax.tree_utils.tree_set(
        state.opt_state, step_size=jnp.asarray(factor, jnp.float32)
    )
    return dataclasses.replace(state, opt_state=opt_state)


def create_learner(
    learning: Learning, model: jebm.Model, reduce=lambda tree: tree
) -> Learner:
    """Returns the learner of config.learning; `reduce` as of `learning.Options`."""
    steps = learning.persistent_steps if learning.persistent_chains else None
    options = jebm.learning.Options(
        persistent_chains=learning.persistent_chains,
        persistent_steps=steps,
        reinit_probability=learning.reinit_probability,
        target_acceptance=learning.target_acceptance or None,
        posterior_tilt=learning.posterior_tilt,
        tilt_warmup_steps=learning.tilt_warmup_steps,
        likelihood_warmup_steps=learning.likelihood_warmup_steps,
        gradient_penalty=learning.gradient_penalty,
        energy_penalty=learning.energy_penalty,
        energy_spectral_bound=learning.energy_spectral_bound,
        ema_decay=learning.ema_decay,
        compute_dtype=learning.compute_dtype,
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
        *arguments, warm_up=warm_up, energy_grad_scale=learning.energy_grad_scale
    )


def create_state(
    key: jax.Array,
    learning: Learning,
    model: jebm.Model,
    backbone: Any = None,
    num_walkers: int = 0,
) -> TrainState:
    """Makes the state before the first step, of all devices, from the seed's key.

    `backbone` are the variables of one that is frozen.
    """
    try:
        state = create_learner(learning, model).init(key, backbone)
    except ValueError as error:
        raise ConfigError(f"learning: {error}") from error
    followers: Any = ()
    if num_walkers and model.energy is not None:
        key = jax.random.fold_in(key, Stream.WALKERS)
        followers = walkers.start(key, model, state.params, num_walkers)
    return TrainState(state, MonitorState.start(), followers)


def make_train_step(learning: Learning, model: jebm.Model):
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
    chains = parallel.shard(_chains(state), devices)
    others = _with_chains(state, ((), ()))
    return _with_chains(parallel.replicate(others, devices), chains)


def collect(state: TrainState) -> TrainState:
    """Gathers a state: the inverse of `distribute`, as NumPy arrays."""
    chains = parallel.unshard(_chains(state))
    return _with_chains(parallel.unreplicate(_with_chains(state, ((), ()))), chains)


def _chains(state):
    """Returns what is split over devices: chains, and walkers without their step."""
    return state.learner.persistent, tuple(state.walkers)[:-1]


def _with_chains(state, chains):
    positions, others = chains
    followers = state.walkers
    if followers:
        followers = Walkers(*(others or ((),) * 4), followers.step_size)
    learner = state.learner.replace(persistent=positions)
    return state.replace(learner=learner, walkers=followers)


def make_follow(model: jebm.Model):
    """Returns `follow(key, state, images) -> (state, metrics)`, for `parallel.pmap`.

    Moves the walkers on, to the averaged parameters, and asks them for log Z.
    """

    def follow(key, state, images):
        del images
        followers, ema = state.walkers, state.learner.ema
        key = jax.random.fold_in(key, Stream.WALKERS)
        key = jax.random.fold_in(key, state.learner.step)
        index = parallel.example_index(len(followers.tilt))
        followers, acceptance = walkers.move(
            example_keys(key, index), model, ema, followers
        )
        followers = walkers.adapted(followers, parallel.mean(acceptance.mean()))
        log_w = parallel.gather(walkers.log_weights(followers))
        value, error, effective = walkers.of_arrived(log_w)
        metrics = {
            "log_z_nats": value,
            "log_z_error_nats": error,
            "log_z_effective_samples": effective,
        }
        return state.replace(walkers=followers), metrics

    return follow


def make_diagnose(model: jebm.Model):
    """Returns `diagnose(key, state, images) -> metrics`, for `parallel.pmap`.

    Acceptance under MALA and stiffness of the chains of `jebm.diagnostics`, averaged
    over the images: a few per device are enough.
    """

    def diagnose(key, state, images):
        x = _images(state, images)
        key = jax.random.fold_in(key, Stream.DIAGNOSTICS)
        key = jax.random.fold_in(key, state.learner.step)
        keys = example_keys(key, parallel.example_index(x.shape[0]))
        metrics, learned = {}, state.learner.step_sizes
        for name, chain in active_chains(model).items():
            if name in learned:
                chain = dataclasses.replace(chain, step_size=learned[name])
            given = x if name == "posterior" else None
            results = chain_diagnostics(
                keys, model, state.learner.params, chain, x=given
            )
            metrics[f"{name}_acceptance"] = results.acceptance_rate.mean()
            metrics[f"{name}_stiffness"] = results.stiffness.mean()
        return parallel.mean(metrics)

    return diagnose


def _images(state, images):
    return to_unit(images).astype(float_dtype(state.learner.params))
