"""Texts and JSON, written in one piece; paths and names that people give."""

import hashlib
import json
import os
import pathlib
from typing import Any

from experiments.errors import ConfigError
from jebm.files import written_whole

_LONGEST = 160  # bytes of a name; the system takes 255, and endings are added


def local_path(name: str, text: str) -> pathlib.Path:
    """Returns the path that `text` gives, with its `~` expanded.

    Raises:
      ConfigError: naming what the path is of, for an address of elsewhere such as
        gs://bucket/run, and for the home of nobody.

    Example:
      >>> local_path("workdir", "runs/digits").name
      'digits'
    """
    if "://" in text:
        raise ConfigError(
            f"{name} must be a path on this machine, got {text!r}: mount what it is "
            "on, or use a directory here and copy it there"
        )
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as error:  # there is no such user
        raise ConfigError(f"{name} {text!r}: {error}") from error


def short_name(text: str) -> str:
    """Returns a name for a file: `text` without slashes, `digest_name` of a long one.

    Example:
      >>> short_name("seed=3")
      'seed=3'
      >>> short_name(1000 * "a")[-12:]
      'aaa-41edece4'
    """
    name = text.replace("/", "_")
    if len(os.fsencode(name)) <= _LONGEST:
        return name
    return digest_name(name, text)


def digest_name(name: str, text: str) -> str:
    """Returns `name`, cut where it is too long, with a digest of `text` at its end."""
    digest = hashlib.sha256(os.fsencode(text)).hexdigest()[:8]
    start = os.fsencode(name)[: _LONGEST - len(digest) - 1]
    return f"{start.decode(errors='ignore')}-{digest}"


def readable(text: str) -> str:
    r"""Returns a name of the system as text: its bytes that are no UTF-8 become "?".

    Example:
      >>> readable("caf\udce9.png")
      'caf?.png'
    """
    return text.encode(errors="replace").decode()


def read_json(path: pathlib.Path, kind: type = dict) -> Any:
    """Reads what `write_json` has written, a dict or a list as `kind` says.

    Raises:
      ConfigError: if the file is damaged, or another's.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
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
        # Names of files may hold bytes that are no text.
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
