"""Tells a run that diverges, also while all its numbers are still finite.

The pair of energy and sampler runs away when the energy asks for more than the chain
can follow: the gap E- minus E+ grows, the chains' gradients grow, the noise behind the
prior samples leaves the unit scale. Training then goes back to the last good checkpoint
with half the energies' learning rate.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class GuardState(NamedTuple):
    """What the guard remembers; saved with the training state."""

    rescues: jax.Array  # int32 []: each has halved the energies' learning rate
    good: jax.Array  # int32 []: step of the checkpoint that the last one went back to

    @classmethod
    def start(cls) -> "GuardState":
        """Before any rescue."""
        return cls(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


# Fields of `config.guard` that bound the metric of the same name.
LIMITS = (
    "energy_gap_nats",
    "prior_grad_norm",
    "posterior_grad_norm",
    "prior_eps_square",
)


def verdict(values: dict[str, float], limits) -> str | None:
    """Says in words what is wrong with the metrics of an interval; None: nothing."""
    if wrong := sorted(n for n, value in values.items() if not math.isfinite(value)):
        return f"{', '.join(wrong)} not finite"
    beyond = [
        f"{name} of {values[name]:.4g} beyond {limits[name]:g}"
        for name in LIMITS
        if name in values and abs(values[name]) > limits[name]
    ]
    return "; ".join(beyond) or None


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
