"""Settings of the learners, with their own checks."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from jebm.kernels import Chain


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings that all learners share.

    Attributes:
      posterior: the chain for z+; None for the model's.
      persistent_chains: prior chains that go on where they stood, a batch of them at
        every update; a multiple of the batch size. 0: all start anew.
      persistent_steps: steps of a visit; None for those of the learner's chain.
      reinit_probability: with which a chain starts anew at a visit, in [0, 1].
      gradient_penalty: times mean |grad_eps E|^2 of prior samples: a chain can only
        follow a smooth energy.
      energy_penalty: times mean E^2 of posterior and of prior samples.
      energy_spectral_bound: of every kernel of the energies; none leaves an update
        beyond it (arXiv 1804.04368). 0: no bound.
      ema_decay: of the averaged parameters, in [0, 1].
      reduce: averages a pytree over the devices that an update is spread over, as
        `lambda tree: jax.lax.pmean(tree, "devices")` does inside a pmap; None for one.

    Raises:
      ValueError: for a value out of range. Arrays, as of vmapped settings, are trusted.
    """

    posterior: Chain | None = None
    persistent_chains: int = 0
    persistent_steps: int | None = None
    reinit_probability: Any = 0.1
    gradient_penalty: Any = 0.02
    energy_penalty: Any = 0.0
    energy_spectral_bound: float = 0.0
    ema_decay: float = 0.999
    reduce: Callable[[Any], Any] | None = None

    def __post_init__(self):
        check_range(self, persistent_chains=(0, math.inf, int))
        if self.persistent_steps is not None:
            check_range(self, persistent_steps=(1, math.inf, int))
        check_range(self, reinit_probability=(0, 1, float), ema_decay=(0, 1, float))
        penalties = "gradient_penalty", "energy_penalty", "energy_spectral_bound"
        check_range(self, **dict.fromkeys(penalties, (0, math.inf, float)))


@dataclasses.dataclass(frozen=True)
class WarmUp:
    """How a variational learner begins, and what keeps a deep hierarchy smooth.

    Attributes:
      kl_steps: updates in which the divergence of q from p_beta grows to its full
        weight. 0: it has it from the first.
      kl_balance: whether it is meanwhile balanced between layers, see
        `objectives.balanced_kl_weights`.
      spectral_penalty: times the spectral norms of all kernels and the largest scale
        of each normalisation, of a backbone that sows kernels (arXiv 2007.03898).
      spectral_penalty_start: where that weight moves from in the warm-up, in equal
        ratios. 0: it does not move.

    Raises:
      ValueError: for a value out of range, or a setting of a warm-up without steps.
    """

    kl_steps: int = 0
    kl_balance: bool = False
    spectral_penalty: float = 0.0
    spectral_penalty_start: float = 0.0

    def __post_init__(self):
        check_range(self, kl_steps=(0, math.inf, int))
        weights = "spectral_penalty", "spectral_penalty_start"
        check_range(self, **dict.fromkeys(weights, (0, math.inf, float)))
        for name in ("kl_balance", "spectral_penalty_start"):
            if getattr(self, name) and not self.kl_steps:
                raise ValueError(
                    f"{name} works in the warm-up of the divergence, got "
                    f"{getattr(self, name)} with kl_steps=0"
                )

    def progress(self, step: jax.Array) -> Any:
        """How far the warm-up is at `step`, from 1e-4 to 1."""
        if not self.kl_steps:
            return 1.0
        return jax.numpy.clip(step / self.kl_steps, 1e-4, 1.0)

    def spectral_weight(self, step: jax.Array) -> Any:
        """The weight of the spectral norms at `step`."""
        last, first = self.spectral_penalty, self.spectral_penalty_start
        return last * (first / last) ** (1 - self.progress(step)) if first else last


def check_range(options: Any, **ranges: tuple[float, float, type]) -> None:
    """Raises a ValueError unless each named attribute is a number in its range."""
    for name, (low, high, kind) in ranges.items():
        value = getattr(options, name)
        if isinstance(value, jax.Array):
            continue
        number = isinstance(value, int if kind is int else int | float)
        if isinstance(value, bool) or not number or not low <= value <= high:
            what = "an integer" if kind is int else "a number"
            raise ValueError(f"{name} must be {what} in [{low}, {high}], got {value!r}")
