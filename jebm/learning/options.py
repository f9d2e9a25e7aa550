"""Settings of the learners, with their own checks."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jebm import checks
from jebm.kernels import Chain
from jebm.products import check_compute_dtype


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings that all learners share; arrays, as under vmap, are not checked.

    Attributes:
      posterior: the chain for z+; None for the model's.
      persistent_chains: prior chains that continue from update to update, a batch of
        them at each; a multiple of the batch size. 0: every chain starts again.
      persistent_steps: steps at each visit; None for those of the learner's chain.
      reinit_probability: that a chain starts again at a visit.
      target_acceptance: acceptance rate that the step of a prior chain with a
        Metropolis test, such as `jebm.MALA`, follows: the step grows while the rate is
        above it, and shrinks while it is below. A posterior chain with that test
        follows it too. None: the steps are constant.
      posterior_tilt: share of the energy, in [0, 1], in the posterior that the chain
        samples and the generator learns from: z+ follows
        p(x|z) p_beta(z) exp(-tilt E(z)). 1 is the model's own posterior. At 0
        generator and hierarchy learn as if the prior were Gaussian, while the energies
        tilt it.
      tilt_warmup_steps: updates over which `posterior_tilt` grows from 0.
      likelihood_warmup_steps: updates over which the weight of log p(x|z) in the law
        of the posterior chain grows from 0 to 1. The posterior of a generator that has
        learned nothing yet is far from the prior. If an encoder learns from short
        chains, samples that have gone there take very long to return.
      gradient_penalty: times mean |grad_eps E|^2 of prior samples: a chain can only
        follow a smooth energy.
      energy_penalty: times mean E^2 of posterior and of prior samples.
      energy_spectral_bound: of every kernel of the energies; none leaves an update
        beyond it (arXiv 1804.04368). 0: no bound.
      ema_decay: of the averaged parameters.
      compute_dtype: that chains and losses have, see `jebm.with_compute_dtype`; None
        for the model's own.
      reduce: averages a pytree over the devices that an update is spread over, as
        `lambda tree: jax.lax.pmean(tree, "devices")` does in a pmap.
    """

    posterior: Chain | None = None
    persistent_chains: int = 0
    persistent_steps: int | None = None
    reinit_probability: Any = 0.1
    target_acceptance: float | None = None
    posterior_tilt: Any = 1.0
    tilt_warmup_steps: int = 0
    likelihood_warmup_steps: int = 0
    gradient_penalty: Any = 0.02
    energy_penalty: Any = 0.0
    energy_spectral_bound: float = 0.0
    ema_decay: float = 0.999
    compute_dtype: str | None = None
    reduce: Callable[[Any], Any] = lambda tree: tree

    def __post_init__(self):
        checks.integer("persistent_chains", self.persistent_chains)
        checks.integer("tilt_warmup_steps", self.tilt_warmup_steps)
        checks.integer("likelihood_warmup_steps", self.likelihood_warmup_steps)
        if self.persistent_steps is not None:
            checks.positive_int("persistent_steps", self.persistent_steps)
            if not self.persistent_chains:
                raise ValueError("persistent_steps needs persistent_chains")
        if self.compute_dtype is not None:
            check_compute_dtype(self.compute_dtype)
        if not callable(self.reduce):
            raise ValueError(f"reduce must be a function, got {self.reduce!r}")
        if self.target_acceptance is not None:
            checks.number("target_acceptance", self.target_acceptance, most=1)
        for name in ("reinit_probability", "ema_decay", "posterior_tilt"):
            checks.number(name, getattr(self, name), most=1)
        for name in ("gradient_penalty", "energy_penalty", "energy_spectral_bound"):
            checks.number(name, getattr(self, name))

    def tilt(self, step: jax.Array, dtype: jnp.dtype) -> jax.typing.ArrayLike:
        """Returns the share of the energy at an update, as its warm-up has it."""
        return self.posterior_tilt * _progress(step, self.tilt_warmup_steps, dtype)

    def weights(self, step: jax.Array, dtype: jnp.dtype) -> dict[str, Any]:
        """Returns those of the posterior's terms, for `jebm.chains.run_chains`."""
        warm = _progress(step, self.likelihood_warmup_steps, dtype)
        return {"tilt": self.tilt(step, dtype), "likelihood_weight": warm}


def _progress(step, num_steps, dtype):
    """Computes the part of a warm-up that is over at an update, in [0, 1]."""
    return jnp.minimum(step.astype(dtype) / num_steps, 1) if num_steps else 1.0
