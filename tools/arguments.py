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


class _Help(
    argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter
):
    """Shows defaults, and the description in its own lines."""


def of_backbone(prog: str, about: str) -> argparse.ArgumentParser:
    """Makes the parser of a command that reads a trained run and writes to a folder.

    Its help begins with `about`, a module's docstring, and ends each argument with its
    default.

    Example:
      >>> parser = of_backbone("python -m tools.priors", "Compares all priors.")
      >>> parser.parse_args(["--backbone=runs/a", "--workdir=runs/b"]).backbone.name
      'a'
    """
    parser = argparse.ArgumentParser(prog, description=about, formatter_class=_Help)
    parser.add_argument(
        "--backbone", type=path_argument, required=True, default=argparse.SUPPRESS,
        help="run of experiments.main whose generator has an encoder",
    )  # fmt: skip
    parser.add_argument(
        "--workdir", type=path_argument, required=True, default=argparse.SUPPRESS,
        help="output directory",
    )  # fmt: skip
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
