"""The first of two stages: its configuration, and its model."""

import functools
import importlib
import pathlib
from collections.abc import Callable
from typing import Any

from experiments.configs import CONFIGS
from experiments.errors import ConfigError
from experiments.runtime.files import read_json


def stage_one(config):
    """The configuration of the first stage."""
    name = config.backbone.stage_one
    if name not in {file.stem for file in CONFIGS.glob("[!_]*.py")}:
        raise ConfigError(
            f"backbone.stage_one must name a file of experiments/configs, got {name!r}"
        )
    first = importlib.import_module(f"experiments.configs.{name}").get_config()
    first.seed, first.data, first.prior = config.seed, config.data, "gaussian"
    own, first.eval = first.eval.anomaly, config.eval.copy_and_resolve_references()
    for weight in ("likelihood", "neighbours", "volume"):  # a Gaussian prior's own
        first.eval.anomaly[f"{weight}_weight"] = own[f"{weight}_weight"]
    if not first.eval.anomaly.num_neighbours:
        first.eval.anomaly.update(neighbours_weight=0.0, volume_weight=0.0)
    return first


def stage_spec(config, of_config: Callable) -> dict[str, Any]:
    """Backbone and likelihood as `jebm.build` takes them.

    Those of the checkpoint, or what `of_config` makes of the first stage's config.
    """
    check_stages(config)
    if config.backbone.checkpoint is None:
        spec = of_config(stage_one(config))
    else:
        spec = _read_spec(config.backbone.checkpoint)
    return {name: spec[name] for name in ("backbone", "likelihood")}


@functools.lru_cache(maxsize=1)
def _read_spec(checkpoint):
    file = pathlib.Path(checkpoint) / "model.json"
    if not file.is_file():
        raise ConfigError(
            f"backbone.checkpoint must be the directory of a run or of a converted "
            f"checkpoint, got {checkpoint!r}, which has no model.json"
        )
    spec = read_json(file)
    if missing := {"backbone", "likelihood"} - set(spec):
        raise ConfigError(f"{file} holds no {' and no '.join(sorted(missing))}")
    return spec


def check_stages(config) -> None:
    """Refuses settings of the two stages that cannot work, naming the field."""
    missing = sorted({"checkpoint", "stage_one"} - set(config.backbone))
    if missing:
        raise ConfigError(
            "learning.method 'two_stage' needs a config.backbone of the fields "
            f"checkpoint and stage_one, and {missing} are missing"
        )
    if config.prior != "ebm":
        raise ConfigError(
            "learning.method 'two_stage' learns energies alone: prior must be 'ebm', "
            f"got {config.prior!r}"
        )
