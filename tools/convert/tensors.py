"""Reads files of PyTorch without PyTorch's pickle: tensors and containers alone."""

import pathlib
from collections.abc import Callable
from typing import Any

from experiments.errors import ConfigError


def load(
    path: pathlib.Path,
    kind: str,
    read: Callable[[Any], Any],
    allowed: tuple[type, ...] = (),
) -> Any:
    """Applies `read` to what is in the file; no code in it runs.

    Args:
      path: the file.
      kind: what it should be, for the error: "a file of tensors".
      read: takes the content; what it raises, the file is not of its kind.
      allowed: classes that may occur besides tensors and containers.

    Raises:
      ConfigError: if it is no such file, or PyTorch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise ConfigError(
            "reading a checkpoint needs PyTorch: pip install -e '.[convert]'"
        ) from None
    if not path.is_file():
        raise ConfigError(f"there is no file {path}")
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return read(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # bytes that are no pickle fail in ways without end
        reason = str(error).strip().split("\n")[0][:200]
        raise ConfigError(f"{path} is not {kind}: {reason}") from None
