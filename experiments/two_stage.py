"""Learning in two stages: a generator first, and then the energies that tilt its prior.

In the second stage the backbone is frozen: it comes from `backbone.checkpoint`, a run
or what `tools.convert_nvae` made, or else is trained before, in WORKDIR/backbone, by
the config that `backbone.stage_one` names, with the data, the seed and the protocol of
the second.
(arXiv 2306.06323, section 4.2)
"""

import functools
import importlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jebm
from experiments.command_line import ConfigError


def stage_one(config):
    """The configuration of the first stage."""
    name = config.backbone.stage_one
    try:
        module = importlib.import_module(f"experiments.configs.{name}")
    except ModuleNotFoundError:
        raise ConfigError(
            f"backbone.stage_one must name a file of experiments/configs, got {name!r}"
        ) from None
    first = module.get_config()
    first.seed, first.data, first.prior = config.seed, config.data, "gaussian"
    first.eval = config.eval
    return first


def model_spec(config, of_config: Callable) -> dict[str, Any]:
    """Backbone and likelihood as `jebm.build` takes them.

    Those of the checkpoint, or what `of_config` makes of the first stage's config.
    """
    check(config)
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
    return json.loads(file.read_text())


def check(config) -> None:
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


def load_backbone(config, path: pathlib.Path, model: jebm.Model, train: Callable):
    """The backbone's variables; trains the first stage where there is no checkpoint."""
    source = config.backbone.checkpoint
    if source is None:
        source = path / "backbone"
        print(f"Stage 1: the backbone, in {source}.")
        train(stage_one(config), source)
        print(f"Stage 2: its energies, in {path}.")
    found, params = jebm.load(source)
    if found.image_shape != model.image_shape:
        raise ConfigError(
            f"the backbone in {source} is of images {found.image_shape}, and "
            f"data.name {config.data.name!r} has {model.image_shape}"
        )
    if found.backbone != model.backbone:
        raise ConfigError(
            f"{source} holds another backbone than backbone.stage_one "
            f"{config.backbone.stage_one!r} says: choose another --workdir"
        )
    return params.backbone
