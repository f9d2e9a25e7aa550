"""The directory of a run: locked by one process, and named in errors."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator

from experiments.errors import ConfigError


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
    """Lets errors of the system name a place, which that of a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(workdir)) from error
