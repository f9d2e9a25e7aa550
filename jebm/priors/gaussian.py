"""The Gaussian hierarchy itself: N(0, I), with nothing to learn."""

import dataclasses

import jax.numpy as jnp

from jebm.priors.base import Prior


@dataclasses.dataclass(frozen=True)
class Gaussian(Prior):
    """The prior that the generator was trained with: g = 0, draws are exact."""

    cannot = "leave the holes of the hierarchy"

    def init(self, key, frozen, draws):
        """Returns an empty state; see `Prior`."""
        del key, frozen, draws
        return ()

    def update(self, key, frozen, state, draws):
        """Learns nothing."""
        del key, frozen, draws
        return state, {}

    def sample(self, key, frozen, state, num, effort=1):
        """Draws eps of N(0, I); see `Prior`."""
        del state, effort
        return frozen.noise(key, num)

    def log_tilt(self, frozen, state, eps):
        """Returns 0 for each eps, [N]; see `Prior`."""
        del frozen, state
        return jnp.zeros_like(eps[0], shape=len(eps[0]))
