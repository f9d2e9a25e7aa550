"""Learning in two stages: a generator first, and then the energies that tilt its prior.

In the second stage the backbone is frozen: it comes from `backbone.checkpoint`, a run
or what `tools.convert_nvae` made, or else is trained before, in WORKDIR/backbone, by
the config that `backbone.stage_one` names, with the data, the seed and the protocol of
the second.
(arXiv 2306.06323, section 4.2)
"""

import functools
import importlib
import pathlib
from collections.abc import Callable
from typing import Any

import jax

import jebm
from experiments import parallel
from experiments.command_line import CONFIGS, ConfigError
from experiments.workdir import flat, read_json


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
    spec = read_json(file)
    if missing := {"backbone", "likelihood"} - set(spec):
        raise ConfigError(f"{file} holds no {' and no '.join(sorted(missing))}")
    return spec


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
    with parallel.together():
        params = _read_backbone(config, source, model)
    return parallel.share(params.backbone)


def _check_held_out(config, source):
    """Refuses a run that has learned what is to be held out."""
    file, wanted = pathlib.Path(source) / "config.json", config.data.heldout_digit
    if wanted is None or not file.is_file():  # a converted checkpoint has none
        return
    held_out = dict(flat(read_json(file))).get("data.heldout_digit")
    if held_out != wanted:
        raise ConfigError(
            f"the backbone in {source} was trained with data.heldout_digit {held_out}, "
            f"and data.heldout_digit is {wanted} here"
        )


def _read_backbone(config, source, model):
    if not parallel.is_first():  # which shares what it has read
        return jebm.init(jax.random.key(0), model)
    found, params = jebm.load(source)
    if found.image_shape != model.image_shape:
        raise ConfigError(
            f"the backbone in {source} is of images {found.image_shape}, and "
            f"data.name {config.data.name!r} has {model.image_shape}"
        )
    _check_held_out(config, source)
    if found.backbone != model.backbone:
        raise ConfigError(
            f"{source} holds another backbone than backbone.stage_one "
            f"{config.backbone.stage_one!r} says: choose another --workdir"
        )
    return params
