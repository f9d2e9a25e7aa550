"""What training calls on its way and does not know: pictures, and what follows."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

from experiments.options import Experiment
from experiments.runs import Run


def _nothing(*arguments) -> None:
    """Does nothing."""


class Hooks(NamedTuple):
    """Functions that the caller of training hands in; by default they do nothing."""

    # At every `log.sample_every` steps, of the run as it is by then.
    pictures: Callable[[Run], None] = _nothing
    # When a run has been trained to its end, in its directory.
    end: Callable[[Experiment, pathlib.Path], None] = _nothing
