"""The divergence monitor: back to a good checkpoint, with smaller steps.

`jebm.learning.violated_limits` says that a run diverges; training then rolls back to
the last good checkpoint, and goes on with half the energies' learning rate.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jebm.learning import Limits, violated_limits


class MonitorState(NamedTuple):
    """What the monitor remembers; saved with the training state."""

    rollbacks: jax.Array  # int32 []: each has halved the energies' learning rate
    good: jax.Array  # int32 []: step of the checkpoint that the last one went back to

    @classmethod
    def start(cls) -> "MonitorState":
        """Returns the state before any rollback."""
        return cls(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def violations(values: Mapping[str, float], limits: Limits) -> str | None:
    """Says in words what is wrong with the metrics of an interval; None: nothing."""
    return "; ".join(violated_limits(values, limits)) or None


def last_good(steps: list[int], step: int, interval: int, good: int = 0) -> int:
    """Returns the newest checkpoint to trust where training was found to diverge.

    It is one that was followed by a whole sound interval. Where training got to none
    since it last went back, the checkpoint of then bears the damage already, which no
    smaller learning rate undoes: the one before it.

    Args:
      steps: of the checkpoints, in order.
      step: where training was found to diverge.
      interval: steps between checkpoints.
      good: where the last rollback went.

    Returns:
      Its step; 0, the start, if there is none.

    Example:
      >>> last_good([100, 200, 300], step=310, interval=100)
      200
      >>> last_good([100, 200, 300], step=310, interval=100, good=200)
      100
    """
    sound = [s for s in steps if s > good and s + interval < step]
    return max(sound or [s for s in steps if s < good], default=0)
