"""Values of the steps to come, computed while the caller works on this one."""

import concurrent.futures
from collections.abc import Callable
from typing import Any


class Prefetch:
    """Calls `function(step)` for the steps to come, in a thread, ahead of the caller.

    The values are those of `function`, in whatever order they are asked for; in
    ascending order there is nothing to wait for.

    Example:
      >>> squares = Prefetch(lambda step: step**2)
      >>> [squares(step) for step in (3, 4, 5, 3)]
      [9, 16, 25, 9]
      >>> squares.close()
    """

    def __init__(self, function: Callable[[int], Any], ahead: int = 2):
        self._function, self._ahead, self._coming = function, ahead, {}
        self._thread = concurrent.futures.ThreadPoolExecutor(1)

    def __call__(self, step: int) -> Any:
        """The value of `function(step)`."""
        wanted = range(step, step + 1 + self._ahead)
        for other in self._coming.keys() - set(wanted):
            self._coming.pop(other).cancel()
        for other in wanted:
            if other not in self._coming:
                self._coming[other] = self._thread.submit(self._function, other)
        return self._coming.pop(step).result()

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)
