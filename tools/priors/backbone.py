"""What the commands read: the run whose generator is frozen, and numbers."""

import argparse
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


def positive(text: str) -> float:
    """Reads a positive number of a command line.

    Raises:
      ArgumentTypeError: for anything else.

    Example:
      >>> positive("0.5")
      0.5
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return value
