"""Learning in two stages: a generator first, and then the energies that tilt its prior.

In the second stage the backbone is frozen: it comes from `backbone.checkpoint`, a run
or what `tools.convert.nvae` made, or else is trained before, in WORKDIR/backbone, by
the config that `backbone.stage_one` names, with the data, the seed and the evaluation
of the second. (arXiv 2306.06323, section 4.2)
"""

import pathlib
from collections.abc import Callable

import jax
import numpy as np

import jebm
from experiments.errors import ConfigError
from experiments.models import stage_one
from experiments.options import Experiment
from experiments.rundir.settings import read_settings
from experiments.runtime import parallel
from experiments.runtime.files import local_path


def load_backbone(
    experiment: Experiment, path: pathlib.Path, model: jebm.Model, train: Callable
):
    """Returns the backbone's variables; trains it where there is no checkpoint.

    `train(experiment, path)` trains the first stage.
    """
    if (checkpoint := experiment.backbone["checkpoint"]) is not None:
        source = local_path("backbone.checkpoint", checkpoint)
    else:
        source = path / "backbone"
        print(f"Stage 1: the backbone, in {source}.")
        train(stage_one(experiment), source)
        print(f"Stage 2: its energies, in {path}.")
    with parallel.together():
        params = _read_backbone(experiment, source, model)
    return parallel.share(params.backbone)


def check_backbone(
    experiment: Experiment, path: pathlib.Path, params: jebm.Params, backbone
) -> None:
    """Refuses a `backbone.checkpoint` that is not the backbone of a run's parameters.

    It may have moved since the run was begun, but holds the same.
    """
    source = experiment.backbone.get("checkpoint")
    if source is None or backbone is None:
        return
    pairs = zip(
        jax.tree.leaves(params.backbone), jax.tree.leaves(backbone), strict=True
    )
    if not all(np.array_equal(ours, theirs) for ours, theirs in pairs):
        raise ConfigError(
            f"the run in {path} began with another backbone than that in {source}: "
            "name its own as backbone.checkpoint, or choose another --workdir"
        )


def _read_backbone(experiment, source, model):
    if not parallel.is_first():  # which shares what it has read
        return jebm.init(jax.random.key(0), model)
    loaded, params = jebm.load(source)
    if loaded.image_shape != model.image_shape:
        raise ConfigError(
            f"the backbone in {source} makes images {loaded.image_shape}, and "
            f"data.name {experiment.data.name!r} has {model.image_shape}"
        )
    _check_heldout(experiment, source)
    if loaded.backbone != model.backbone:
        raise ConfigError(
            f"{source} holds another backbone than that of backbone.stage_one "
            f"{experiment.backbone['stage_one']!r}: choose another --workdir"
        )
    return params


def _check_heldout(experiment, source):
    """Refuses a run that has learned what is to be held out."""
    requested = experiment.data.heldout_class
    # A converted checkpoint has no config.json.
    if requested is None or not (source / "config.json").is_file():
        return
    heldout = read_settings(source)["data"].get("heldout_class")
    if heldout != requested:
        raise ConfigError(
            f"the backbone in {source} was trained with data.heldout_class {heldout}, "
            f"and data.heldout_class is {requested} here"
        )
