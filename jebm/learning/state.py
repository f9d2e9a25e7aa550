"""What learners carry from one update to the next, and how it begins."""

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jebm import checks, objectives, spectral
from jebm.chains import start_positions
from jebm.hierarchy import Latents
from jebm.kernels import Chain
from jebm.learning.options import Options
from jebm.model import Model, Params, float_dtype, init, trainable
from jebm.warm_up import WarmUp

if TYPE_CHECKING:  # slow to import, and not needed to sample
    import optax


@struct.dataclass
class LearnerState:
    """What an update needs and returns: a pytree of arrays, to copy and to save."""

    step: jax.Array  # int32 [], updates taken
    params: Params
    ema: Params  # the averaged parameters, to sample and to score with
    opt_state: Any
    # Where the persistent chains stand, each [num, *shape_i], those of one example side
    # by side; () without any. On many devices, split them as the examples.
    persistent: Latents
    # Of `jebm.spectral`: "backbone" where its norms are penalised, "energy" where those
    # are bounded.
    spectral: dict[str, spectral.Vectors]
    # Of the chains, "prior" and "posterior", whose step follows the acceptance rate:
    # their step sizes, [] each.
    step_sizes: dict[str, jax.Array] = struct.field(default_factory=dict)


class Learner(NamedTuple):
    """A learning rule as two pure functions.

    `init(key, backbone=None) -> LearnerState` starts at drawn parameters, or at the
    variables of a trained backbone, `params.backbone`.

    `update(key, state, x, index=None) -> (LearnerState, info)` takes a step on images
    `x` [B, H, W, C] in [0, 1]; of NumPy arrays the range is checked. Example n draws
    from the typed key, from `state.step`, so that one key will do for all steps, and
    from `index[n]`, its number in a batch that is spread over devices, or else n.
    `info` has means over the batch by name, [] each: terms of the loss in nats, the gap
    of the energies, norms of gradients.
    """

    init: Callable[..., LearnerState]
    update: Callable[..., tuple[LearnerState, dict[str, jax.Array]]]


class Rule(NamedTuple):
    """What makes a learner; see `jebm.learning.learners`."""

    model: Model
    chain: Chain  # of the prior
    posterior: Chain
    optimizer: "optax.GradientTransformation"
    options: Options
    warm_up: WarmUp = WarmUp()
    frozen: bool = False  # the backbone
    nce_steps: int = 0


class Role(enum.IntEnum):
    """What a key is folded with, so that no two draws share their noise."""

    INIT, POSTERIOR, PRIOR, REINIT, SPECTRAL = 0, 1, 2, 7, 8


def start(rule: Rule, key: jax.Array, backbone: Any = None) -> LearnerState:
    """Makes the state before the first update: `Learner.init`."""
    checks.key(key)
    params = init(jax.random.fold_in(key, Role.INIT), rule.model)
    if backbone is not None:
        params = checks.backbone(rule.model, params, backbone)
        # What is learned on a frozen backbone has its precision.
        dtype = float_dtype(params)
        energy = jax.tree.map(lambda leaf: leaf.astype(dtype), params.energy)
        params = params._replace(energy=energy)
    elif rule.frozen:
        raise ValueError("init needs a trained backbone: init(key, params.backbone)")
    key_spectral = jax.random.fold_in(key, Role.SPECTRAL)
    persistent: Latents = ()
    if rule.model.energy is not None and rule.options.persistent_chains:
        key_chains = jax.random.fold_in(key, Role.REINIT)
        keys = jax.random.split(key_chains, rule.options.persistent_chains)
        persistent = start_positions(keys, rule.model, params, rule.chain)
    return LearnerState(
        step_sizes=_first_steps(rule, float_dtype(params)),
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=jax.tree.map(jnp.copy, params),  # of its own, so that a state is donated
        opt_state=rule.optimizer.init(trainable(params, rule.frozen)),
        persistent=persistent,
        spectral=_spectral_vectors(rule, key_spectral, params),
    )


def _first_steps(rule, dtype):
    """Returns the step sizes that are to follow the acceptance rate, by chain."""
    if rule.options.target_acceptance is None:
        return {}
    moving, steps = {}, rule.chain.num_steps
    if rule.options.persistent_chains:
        steps = rule.options.persistent_steps or steps
    if rule.model.energy is not None and steps:
        moving["prior"] = rule.chain
    if rule.posterior.adjusted and rule.posterior.num_steps:
        moving["posterior"] = rule.posterior
    # Copies, so that a state is donated.
    return {name: jnp.array(c.step_size, dtype) for name, c in moving.items()}


def _spectral_vectors(rule, key, params):
    vectors = {}
    if rule.warm_up.spectral_penalty:
        kernels = objectives.sown_kernels(rule.model, params)
        vectors["backbone"] = spectral.start(key, kernels)
    if rule.options.energy_spectral_bound and params.energy:
        kernels = spectral.kernels_of(params.energy["params"])
        vectors["energy"] = spectral.start(jax.random.fold_in(key, 1), kernels)
    return vectors
