"""The run whose generator the commands freeze."""

import pathlib

from experiments import options
from experiments.errors import ConfigError
from experiments.rundir.settings import read_settings
from experiments.runs import Run, open_run
from jebm.hierarchy import has_encoder


def open_backbone(path: pathlib.Path) -> Run:
    """Opens a run whose encoder tells the noise behind images.

    Raises:
      ConfigError: if there is none, or it has no encoder.
    """
    if not (path / "config.json").is_file():
        raise ConfigError(f"--backbone must be the directory of a run, got {path}")
    run = open_run(options.read(read_settings(path)), path)
    if not has_encoder(run.model.backbone):
        raise ConfigError(f"--backbone must be a run with an encoder, got {path}")
    return run
