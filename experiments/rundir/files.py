"""The directory of a run: locked by one process, named in errors, given a model."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator
from typing import Any

import jebm
from experiments.errors import ConfigError
from experiments.runtime.files import write_json
from jebm import checkpoints


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
    """Makes `workdir` and holds it: two runs in one directory would mix their files.

    The system lets go of a process that has died, however that was.

    Raises:
      ConfigError: if another process holds it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another process trains in {workdir}: wait for it, or choose another "
                "--workdir"
            ) from None
        yield


@contextlib.contextmanager
def naming(workdir: pathlib.Path) -> Iterator[None]:
    """Errors of the system name a place, which that of a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(workdir)) from error


def write_model(
    workdir: pathlib.Path, spec: dict[str, Any], params: jebm.Params, step: int = 0
) -> None:
    """Makes a directory that `jebm.load` reads: one checkpoint and model.json."""
    with checkpoints.manager(workdir, keep=1) as manager:
        checkpoints.save(manager, step, {"ema": params})
    write_json(workdir / "model.json", spec)  # last: now it can be loaded
