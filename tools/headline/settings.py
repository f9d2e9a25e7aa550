"""Which experiment a data set is trained by, and its smallest form."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.configs import CONFIGS
from experiments.errors import ConfigError
from jebm.names import did_you_mean


class Choice(NamedTuple):
    """A config of `experiments/configs`, and the fields that are set otherwise."""

    config: str
    fields: Mapping[str, Any]
    smallest: Mapping[str, Any]  # beside `fields`, to see in minutes that all works


_SMALL_LOG = {
    "log.every": 10,
    "log.checkpoint_every": 50,
    "log.sample_every": 200,
    "log.num_walkers": 0,
    "log.num_samples": 36,
    "eval.num_samples": 200,
    "eval.batch_size": 100,
    "eval.num_diagnosed": 16,
    "eval.exact_length": 0,
}

_SMALL_DECONV = _SMALL_LOG | {
    "backbone.decoder_widths": (32, 16, 8),
    "backbone.prior_widths": (50,),
    "energy.widths": ((50, 50), (50,)),
    "chains.prior.num_steps": 20,
    "chains.posterior.num_steps": 10,
    "learning.backbone_lr": 1e-3,
    "learning.energy_lr": 1e-4,
}

FOLDER = "folder"

# What a data set is trained by; FOLDER stands for any folder of pictures.
CHOICES = {
    "cifar10": Choice("cifar10", {}, _SMALL_DECONV),
    "digits": Choice("digits", {}, _SMALL_LOG),
    FOLDER: Choice(
        "cifar10",
        {"data.name": "folder", "data.image_shape": (32, 32, 3)},
        _SMALL_DECONV,
    ),
}


def arguments(data: str, smallest: bool, overrides: list[str]) -> list[str]:
    """Returns what `experiments.main` is told: the config, and its fields.

    Args:
      data: a name of CHOICES, or a folder of pictures.
      smallest: whether the smallest form is meant.
      overrides: further arguments, `--config.FIELD=VALUE`, which come last and so win.

    Raises:
      ConfigError: if `data` is neither.

    Example:
      >>> arguments("digits", False, ["--config.seed=3"])[1:]
      ['--config.seed=3']
    """
    choice, fields = _chosen(data)
    if smallest:
        fields = fields | choice.smallest
    return [
        f"--config={CONFIGS / choice.config}.py",
        *(f"--config.{name}={value}" for name, value in fields.items()),
        *overrides,
    ]


def _chosen(data):
    if data in CHOICES and data != FOLDER:
        return CHOICES[data], dict(CHOICES[data].fields)
    folder = pathlib.Path(data).expanduser()
    if not folder.is_dir():
        named = sorted(CHOICES.keys() - {FOLDER})
        raise ConfigError(
            f"--data must be one of {named} or a folder of pictures, got {data!r}"
            f"{did_you_mean(data, named)}"
        )
    where = {"data.data_dir": folder.absolute()}
    return CHOICES[FOLDER], dict(CHOICES[FOLDER].fields) | where
