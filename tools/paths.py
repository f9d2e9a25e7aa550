"""Paths that the command lines of tools give."""

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
