"""Trains for so many minutes of wall time, in processes that end within a slice.

    DIR/clock.json    the seconds that training has taken so far, of all calls

A run goes on from its checkpoint, so what ends a process, or this program, costs no
more than its start. Minutes count from the start of a process to its end: with
compiling, saving and drawing.
"""

import contextlib
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterator

from experiments.errors import ConfigError
from experiments.runtime.files import read_json, write_json

_PATIENCE = 300.0  # seconds that a process has to save, once it is asked to stop


def seconds_taken(workdir: pathlib.Path) -> float:
    """Returns the seconds that training has taken so far; 0 before the first call."""
    file = workdir / "clock.json"
    return read_json(file)["training_seconds"] if file.is_file() else 0.0


def train(
    command: list[str],
    workdir: pathlib.Path,
    seconds: float,
    slice_seconds: float,
    most: int | None = None,
) -> bool:
    """Trains until the clock of `workdir` shows `seconds`, or training is done.

    Args:
      command: trains, goes on where it stood, and saves when it hears SIGTERM.
      workdir: where the clock is kept.
      seconds: of training in all, of this call and those before.
      slice_seconds: after which a process is asked to stop, and another follows.
      most: slices of this call; None: as many as it takes.

    Returns:
      Whether nothing is left to train: the time is up, or the last step is taken.

    Raises:
      ConfigError: if the process ends with an error, which it has printed.
      KeyboardInterrupt: when asked to stop by SIGTERM or Ctrl-C; the run is saved.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    taken = 0
    while (left := seconds - seconds_taken(workdir)) > 0:
        if taken == most:
            return False
        with _counted(workdir):
            if _one(command, min(left, slice_seconds)):
                return True
        taken += 1
    return True


@contextlib.contextmanager
def _counted(workdir) -> Iterator[None]:
    """Adds what happens within to the clock, however it ends."""
    started = time.monotonic()
    try:
        yield
    finally:
        total = seconds_taken(workdir) + time.monotonic() - started
        write_json(workdir / "clock.json", {"training_seconds": total})


def _one(command, seconds) -> bool:
    """Runs a process for so long; says whether it ended by itself."""
    # In a group of its own Ctrl-C does not reach it: a second signal beside the one of
    # here would end it unsaved.
    process = subprocess.Popen(command, process_group=0)
    try:
        ended = _waited(process, seconds)
        if not ended:
            _stop(process)
    except KeyboardInterrupt:
        _stop(process)
        raise
    finally:
        process.kill()  # what has not ended by now; does nothing to what has
        process.wait()
    # A signal that came before any handler was there has ended it: nothing was lost.
    stopped = not ended and process.returncode == -signal.SIGTERM
    if process.returncode and not stopped:
        raise ConfigError(f"training ended with exit code {process.returncode}")
    return ended


def _stop(process):
    process.terminate()
    if not _waited(process, _PATIENCE):
        raise ConfigError(
            f"training did not save within {_PATIENCE:.0f} s and was killed: the same "
            "command goes on from its last checkpoint"
        )


def _waited(process, seconds):
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
