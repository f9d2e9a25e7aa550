"""Ends training when it is asked to: SIGTERM of a scheduler, Ctrl-C of a person."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

_SECONDS = 1.0  # between two attempts to stop


class Stopped(KeyboardInterrupt):
    """Training was asked to stop, and has: nothing that was saved is lost.

    No `Exception`, so that none who expects a damaged file takes it for one.
    """


def leave(stopped: Stopped) -> None:
    """Says that the program has stopped, and ends it with exit code 0.

    What is computed at this moment is not waited for. The interpreter is not taken
    apart either, for a computation would lose its memory while it runs.
    """
    print(stopped, flush=True)
    sys.stderr.flush()
    os._exit(0)


class Requests:
    """Hears SIGTERM and SIGINT while it is entered; true once one has come.

    Where there is something to save, the first one waits until it is asked for; a
    second, and any elsewhere, raises `Stopped` on the spot. It is raised again every
    second until it leaves: in destructors and some callbacks an error gets lost. In a
    thread, which no signal reaches, it hears nothing.
    """

    _SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self._asked = self._saving = False
        self._before = {}

    def __bool__(self):
        return self._asked

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in self._SIGNALS:
                # None: a handler that is not Python's.
                before = signal.signal(number, self._hear) or signal.SIG_DFL
                self._before[number] = before
        return self

    def __exit__(self, *_):
        if signal.SIGALRM in self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, before in self._before.items():
            signal.signal(number, before)

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Makes the first request wait until it is asked for, or until the end.

        Raises:
          Stopped: at the end, if there was one.
        """
        self._saving = True
        try:
            yield
        finally:
            self._saving = False
        if self._asked:
            raise Stopped("Stopped: the same command goes on from here.")

    def _hear(self, number, frame):
        del frame
        if self._asked or not self._saving:
            self._repeat(f"Stopped by {signal.Signals(number).name}.")
        self._asked = True
        # `print` is not for handlers of signals.
        os.write(2, b"\nSaving, then stopping; once more stops at once.\n")

    def _repeat(self, message):
        def stop(number, frame):
            raise Stopped(message)

        before = signal.signal(signal.SIGALRM, stop) or signal.SIG_DFL
        self._before.setdefault(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, _SECONDS, _SECONDS)
        raise Stopped(message)
