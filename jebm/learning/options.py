"""Settings of the learners, with their own checks."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jebm import checks
from jebm.kernels import Chain


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings that all learners share; an array, as of a vmapped one, is trusted.

    Attributes:
      posterior: the chain for z+; None for the model's.
      persistent_chains: prior chains that go on where they stood, a batch of them at
        every update; a multiple of the batch size. 0: all start anew.
      persistent_steps: steps of a visit; None for those of the learner's chain.
      reinit_probability: with which a chain starts anew at a visit.
      target_acceptance: of a prior chain with a Metropolis test, such as `jebm.MALA`,
        whose step then grows while more proposals are accepted and shrinks while fewer
        are. None: the step stays.
      gradient_penalty: times mean |grad_eps E|^2 of prior samples: a chain can only
        follow a smooth energy.
      energy_penalty: times mean E^2 of posterior and of prior samples.
      energy_spectral_bound: of every kernel of the energies; none leaves an update
        beyond it (arXiv 1804.04368). 0: no bound.
      ema_decay: of the averaged parameters.
      reduce: averages a pytree over the devices that an update is spread over, as
        `lambda tree: jax.lax.pmean(tree, "devices")` does in a pmap.
    """

    posterior: Chain | None = None
    persistent_chains: int = 0
    persistent_steps: int | None = None
    reinit_probability: Any = 0.1
    target_acceptance: float | None = None
    gradient_penalty: Any = 0.02
    energy_penalty: Any = 0.0
    energy_spectral_bound: float = 0.0
    ema_decay: float = 0.999
    reduce: Callable[[Any], Any] = lambda tree: tree

    def __post_init__(self):
        checks.integer("persistent_chains", self.persistent_chains)
        if self.persistent_steps is not None:
            checks.positive_int("persistent_steps", self.persistent_steps)
            if not self.persistent_chains:
                raise ValueError("persistent_steps needs persistent_chains")
        if not callable(self.reduce):
            raise ValueError(f"reduce must be a function, got {self.reduce!r}")
        if self.target_acceptance is not None:
            checks.number("target_acceptance", self.target_acceptance, most=1)
        for name in ("reinit_probability", "ema_decay"):
            checks.number(name, getattr(self, name), most=1)
        for name in ("gradient_penalty", "energy_penalty", "energy_spectral_bound"):
            checks.number(name, getattr(self, name))
