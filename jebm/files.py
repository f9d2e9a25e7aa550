"""Where files lie between runs, and how they are written."""

import contextlib
import hashlib
import io
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


def cache_directory() -> pathlib.Path:
    """Returns JEBM_CACHE, or else `default_cache`."""
    if "JEBM_CACHE" in os.environ:
        return pathlib.Path(os.environ["JEBM_CACHE"])
    return default_cache()


def default_cache() -> pathlib.Path:
    """Returns jebm in XDG_CACHE_HOME or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "jebm"


@contextlib.contextmanager
def written_whole(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Writes a file in one piece: neither a reader nor a kill sees half of it.

    Yields the path of a file beside it, which becomes `path` when all is written; after
    an error it is gone, and `path` is what it was.

    Example:
      >>> import tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp(), "greeting.txt")
      >>> with written_whole(path) as partial:
      ...     _ = partial.write_text("hello")
      ...     path.exists()
      False
      >>> path.read_text()
      'hello'
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)


def write_arrays(path: pathlib.Path, arrays: Mapping[str, Any]) -> tuple[str, int]:
    """Writes a compressed .npz of arrays by name, in one piece.

    Returns its sha256, and its size in bytes.
    """
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    data = file.getvalue()
    with written_whole(path) as partial:
        partial.write_bytes(data)
    return hashlib.sha256(data).hexdigest(), len(data)
