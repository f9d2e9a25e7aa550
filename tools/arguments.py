"""What the command lines of tools give: paths and numbers."""

import argparse
import pathlib

from experiments.errors import ConfigError
from experiments.runtime.files import local_path


def path_argument(text: str) -> pathlib.Path:
    """Reads a path on this machine, with its `~` expanded: --out=~/x comes as it is.

    Raises:
      ArgumentTypeError: for the address of a bucket, and for the home of nobody.

    Example:
      >>> path_argument("~/table").is_absolute()
      True
    """
    try:
        return local_path("the path", text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def of_backbone(prog: str, about: str) -> argparse.ArgumentParser:
    """Makes the parser of a command that reads a trained run and writes to a folder.

    Example:
      >>> parser = of_backbone("python -m tools.priors", "Compares all priors.")
      >>> parser.parse_args(["--backbone=runs/a", "--workdir=runs/b"]).backbone.name
      'a'
    """
    parser = argparse.ArgumentParser(prog, description=about)
    parser.add_argument(
        "--backbone", type=path_argument, required=True, help="a run with an encoder"
    )
    parser.add_argument(
        "--workdir", type=path_argument, required=True, help="where all is written"
    )
    return parser


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
