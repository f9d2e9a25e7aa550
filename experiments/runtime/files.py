"""Texts and JSON, written in one piece."""

import json
import pathlib
from typing import Any

from experiments.errors import ConfigError
from jebm.files import written_whole


def read_json(path: pathlib.Path, kind: type = dict) -> Any:
    """Reads what `write_json` has written, a dict or a list as `kind` says.

    Raises:
      ConfigError: if the file is damaged, or another's.
    """
    try:
        value = json.loads(path.read_text())
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, kind):
        raise ConfigError(f"{path} cannot be read: it holds no {kind.__name__}")
    return value


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file in one piece."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file in one piece."""
    with written_whole(path) as partial:
        partial.write_text(text)
