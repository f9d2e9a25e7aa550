"""The one loop over training steps, of a single run and of many at once."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.runtime import parallel


class Interval(NamedTuple):
    """The state of training at the end of an interval."""

    step: int  # steps taken
    state: Any  # on the devices
    values: dict[str, np.ndarray]  # metrics, means over the interval
    images: Any  # of the last step, on the devices
    rate: float | None  # steps a second, without compiling; None of that step alone


# Above 40 lines by its signature and their meaning: the loop itself is short.
def intervals(
    step_fn: Callable,
    key: Any,
    state: Any,
    feed: Iterator[Any],
    progress,
    *,
    first: int,
    last: int,
    every: int,
    stop: Callable[[], bool] = lambda: False,
    follow: Callable | None = None,
) -> Iterator[Interval]:
    """Takes the steps from `first` to `last`, and yields at each multiple of `every`.

    Args:
      step_fn: (key, state, images) -> (state, metrics), of `parallel.pmap`.
      key: what every step is given.
      state: on the devices; its buffers are reused.
      feed: the images of each step from `first` on, on the devices.
      progress: of tqdm.
      first, last: steps taken before, and in the end, where it yields too.
      every: steps of an interval.
      stop: asked after every step: yield now.
      follow: of the same kind as `step_fn`, called at each multiple of `every`.
    """
    pending, started = [], time.perf_counter()
    progress.set_description("compiling")
    for step in range(first + 1, last + 1):
        images = next(feed)
        state, values = step_fn(key, state, images)
        pending.append(values)
        progress.update()
        if step == first + 1:  # it compiled
            jax.block_until_ready(values)
            progress.set_description("training")
            progress.unpause()
            started = time.perf_counter()
        if step % every and step != last and not stop():
            continue
        values, timed = means(pending), len(pending) - (step - len(pending) == first)
        rate = timed / (time.perf_counter() - started) if timed else None
        if follow is not None and step % every == 0:
            state, more = follow(key, state, images)
            values |= means([more])
        yield Interval(step, state, values, images, rate)
        pending = []
        progress.unpause()  # saving and drawing is not training
        started = time.perf_counter()


def means(pending: list[dict]) -> dict[str, np.ndarray]:
    """Computes the means of metrics that a pmapped function has returned."""
    pending = parallel.unreplicate(pending)
    return {k: np.mean([v[k] for v in pending], axis=0) for k in pending[0]}
