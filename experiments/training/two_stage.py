"""Learning in two stages: a generator first, and then the energies that tilt its prior.

In the second stage the backbone is frozen: it comes from `backbone.checkpoint`, a run
or what `tools.convert.nvae` made, or else is trained before, in WORKDIR/backbone, by
the config that `backbone.stage_one` names, with the data, the seed and the protocol of
the second.
(arXiv 2306.06323, section 4.2)
"""

import pathlib
from collections.abc import Callable

import jax

import jebm
from experiments.errors import ConfigError
from experiments.rundir.settings import flat
from experiments.runtime import parallel
from experiments.runtime.files import read_json
from experiments.stages import stage_one


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
