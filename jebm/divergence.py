"""Detects an update that diverges, even while all its numbers are still finite.

Energy and sampler run away from each other when the energy changes faster than the
chain can follow: the gap E- minus E+ grows, the chains' gradients grow, the noise
behind the prior samples leaves the unit scale. The caller decides what to do, for
instance to go back to an older state with a smaller learning rate.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jebm.hierarchy import Latents


class Limits(NamedTuple):
    """Largest sound magnitudes of the values with these names in an update's info."""

    energy_gap_nats: float = 50.0  # |mean E(z-) - mean E(z+)|
    prior_grad_norm: float = 1e3  # of the log-density, mean over a chain
    posterior_grad_norm: float = 1e5
    prior_eps_square: float = 10.0  # mean eps^2 behind z-; 1 under N(0, I)


def watched(plus: jax.Array, minus: jax.Array, eps: Latents) -> dict[str, jax.Array]:
    """Returns the metrics to watch, of energies [B] at z+ and z- and of z-'s noise.

    Example:
      >>> watched(jnp.ones(2), jnp.zeros(2), (jnp.ones((2, 3)),))["energy_gap_nats"]
      Array(-1., dtype=float32)
    """
    flat = [e.reshape(e.shape[0], -1) for e in eps]
    return {
        "energy_gap_nats": minus.mean() - plus.mean(),
        "prior_eps_square": (jnp.concatenate(flat, axis=1) ** 2).mean(axis=1),
    }


def violated_limits(info: Mapping[str, float], limits: Limits = Limits()) -> list[str]:
    """Describes what is wrong with the info of an update, or with a mean of several.

    Example:
      >>> violated_limits({"loss_nats": 3.0, "energy_gap_nats": -70.0})
      ['energy_gap_nats of -70 beyond 50']
      >>> violated_limits({"loss_nats": float("nan"), "grad_norm": float("inf")})
      ['grad_norm, loss_nats not finite']
    """
    if any(np.ndim(value) for value in info.values()):
        raise ValueError("info must hold scalars: take one of vmapped updates")
    if wrong := sorted(n for n, v in info.items() if not math.isfinite(v)):
        return [f"{', '.join(wrong)} not finite"]
    return [
        f"{name} of {info[name]:.4g} beyond {limit:g}"
        for name, limit in limits._asdict().items()
        if name in info and abs(info[name]) > limit
    ]
