"""Sets how the weights of a variational objective change in its first updates."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jebm import checks


@dataclasses.dataclass(frozen=True)
class WarmUp:
    """Sets how a variational learner begins, and keeps a deep hierarchy smooth.

    Attributes:
      kl_steps: updates in which the KL divergence of q from p_beta grows to its full
        weight. 0: it has its full weight from the first update.
      kl_balance: whether the warm-up balances the divergence between layers, see
        `objectives.kl_weights`.
      spectral_penalty: times the spectral norms of all kernels and the largest scale
        of each normalisation, of a backbone that sows kernels (arXiv 2007.03898).
      spectral_penalty_start: the value of `spectral_penalty` at the start of the
        warm-up, from which it changes in equal ratios. 0: it is constant.
    """

    kl_steps: int = 0
    kl_balance: bool = False
    spectral_penalty: float = 0.0
    spectral_penalty_start: float = 0.0

    def __post_init__(self):
        checks.integer("kl_steps", self.kl_steps)
        for name in ("spectral_penalty", "spectral_penalty_start"):
            checks.number(name, getattr(self, name))
        for name in ("kl_balance", "spectral_penalty_start"):
            if getattr(self, name) and not self.kl_steps:
                raise ValueError(
                    f"{name} needs a warm-up of the KL divergence, got "
                    f"{getattr(self, name)} with kl_steps=0"
                )

        if self.spectral_penalty_start and not self.spectral_penalty:
            raise ValueError(
                "spectral_penalty_start needs a spectral_penalty to change to, got 0"
            )

    def progress(self, step: Any) -> Any:
        """Returns how far the warm-up is at `step`, from 1e-4 to 1."""
        return jnp.clip(step / self.kl_steps, 1e-4, 1.0) if self.kl_steps else 1.0

    def spectral_weight(self, step: Any) -> Any:
        """Returns the weight of the spectral norms at `step`."""
        last, first = self.spectral_penalty, self.spectral_penalty_start
        return last * (first / last) ** (1 - self.progress(step)) if first else last
