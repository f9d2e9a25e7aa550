"""What training does about divergence: back to a good checkpoint, with smaller steps.

`jebm.learning.violated_limits` tells that a run diverges; training then goes back to
the last good checkpoint with half the energies' learning rate.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jebm.learning import Limits, violated_limits

# Fields of `config.monitor` that bound the metric of the same name.
LIMITS = Limits._fields


class GuardState(NamedTuple):
    """What the guard remembers; saved with the training state."""

    rescues: jax.Array  # int32 []: each has halved the energies' learning rate
    good: jax.Array  # int32 []: step of the checkpoint that the last one went back to

    @classmethod
    def start(cls) -> "GuardState":
        """Before any rescue."""
        return cls(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def verdict(values: dict[str, float], limits) -> str | None:
    """Says in words what is wrong with the metrics of an interval; None: nothing.

    `limits` is config.monitor.
    """
    limits = Limits(**{name: limits[name] for name in LIMITS})
    return "; ".join(violated_limits(values, limits)) or None


def last_good(steps: list[int], step: int, interval: int, good: int = 0) -> int:
    """The newest checkpoint to trust where training was found to diverge.

    One that was followed by a whole sound interval. Where training got to none since it
    last went back, the checkpoint of then bears the damage already, which no smaller
    learning rate undoes: the one before it.

    Args:
      steps: of the checkpoints, in order.
      step: where training was found to diverge.
      interval: steps between checkpoints.
      good: where the last rescue went back to.

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
