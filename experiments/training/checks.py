"""Checks of settings."""

import math

from experiments.errors import ConfigError
from experiments.runtime import parallel
from experiments.training import learner, monitor
from jebm.kernels import ENCODED
from jebm.names import unknown_name_message


def check_learning(config) -> None:
    """Refuses settings of learning that cannot work, naming the field."""
    fields = config.learning
    methods = ("mle", "variational", "two_stage")
    if fields.method not in methods:
        raise ConfigError(
            unknown_name_message("learning.method", fields.method, methods)
        )
    if fields.optimizer not in learner.OPTIMIZERS:
        raise ConfigError(
            unknown_name_message(
                "learning.optimizer", fields.optimizer, learner.OPTIMIZERS
            )
        )
    chain = config.chains.posterior
    variational = fields.method == "variational"
    encoded = fields.method != "mle"
    if (chain.start != "encoder") if encoded else (chain.start in ENCODED):
        raise ConfigError(
            f"learning.method {fields.method!r} needs "
            f"{'' if encoded else 'another '}chains.posterior.start "
            f"{'' if encoded else 'than '}'encoder', got {chain.start!r}"
        )
    needs_encoder = {"kl_warmup_steps": 0, "kl_balance": False, "spectral_penalty": 0.0}
    for name, off in needs_encoder.items():
        if not variational and fields[name] != off:
            raise ConfigError(
                f"learning.{name} is of learning.method 'variational', got "
                f"{fields[name]} with {fields.method!r}"
            )
    if fields.nce_steps and fields.method != "two_stage":
        raise ConfigError(
            "learning.nce_steps is of learning.method 'two_stage', got "
            f"{fields.nce_steps} with {fields.method!r}"
        )
    for name in ("kl_balance", "spectral_penalty_start"):
        if fields[name] and not fields.kl_warmup_steps:
            raise ConfigError(
                f"learning.{name} works in the warm-up of the divergence, got "
                f"{fields[name]} with learning.kl_warmup_steps=0"
            )
    if not (encoded or chain.num_steps):
        raise ConfigError(
            "learning.method 'mle' needs steps of the posterior chain, got "
            "chains.posterior.num_steps=0"
        )
    devices = len(parallel.devices())
    if fields.batch_size < 1 or fields.batch_size % devices:
        raise ConfigError(
            f"learning.batch_size must be a positive multiple of the {devices} "
            f"devices, got {fields.batch_size}"
        )
    if fields.persistent_chains < 0 or fields.persistent_chains % fields.batch_size:
        raise ConfigError(
            "learning.persistent_chains must be 0 or a multiple of the batch_size of "
            f"{fields.batch_size}, got {fields.persistent_chains}"
        )
    for name, low, high in (
        ("num_steps", 1, math.inf),
        ("backbone_lr", 0, math.inf),
        ("energy_lr", 0, math.inf),
        ("final_lr_fraction", 0, 1),
        ("warmup_steps", 0, fields.num_steps - 1),
        ("adam_b1", 0, 1),
        ("adam_b2", 0, 1),
        ("adam_eps", 0, math.inf),
        ("weight_decay", 0, math.inf),
        ("energy_weight_decay", 0, math.inf),
        ("clip_norm", 0, math.inf),
        ("ema_decay", 0, 1),
        ("energy_penalty", 0, math.inf),
        ("energy_spectral_bound", 0, math.inf),
        ("gradient_penalty", 0, math.inf),
        ("energy_share", 0, 1),
        ("kl_warmup_steps", 0, math.inf),
        ("spectral_penalty", 0, math.inf),
        ("spectral_penalty_start", 0, math.inf),
        ("restart_fraction", 0, 1),
        ("persistent_steps", 1, math.inf),
        ("nce_steps", 0, math.inf),
    ):
        check_range(config, "learning", name, low, high)
    for name in ("max_rescues", *monitor.LIMITS):
        check_range(config, "guard", name, 0, math.inf)


def check_range(config, group, name, low, high):
    """Refuses a number out of range."""
    if not low <= config[group][name] <= high:
        raise ConfigError(
            f"{group}.{name} must lie in [{low}, {high}], got {config[group][name]}"
        )
