"""A prior with a density as an energy: E(z) = -g(T^-1(z)).

A model with that energy goes wherever one with a joint EBM goes: chains, scores,
log-likelihoods, other libraries' samplers.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jebm.chains import to_eps
from jebm.hierarchy import Latents
from jebm.kernels import MALA, Chains
from jebm.model import Model, Params, init
from jebm.priors.base import Draws, Frozen, Law, Prior

_DRAWS = 1024  # that a state of the right shapes is made of


class Tilt(nn.Module):
    """Minus the tilt of a prior, as an energy of the latents.

    Its parameters are the frozen generator's, which T^-1 needs, and the prior's state;
    `as_model` makes them.

    Attributes:
      prior: the prior.
      model: of the frozen generator.
    """

    prior: Prior
    model: Model

    @nn.compact
    def __call__(self, latents: Latents) -> jax.Array:
        """Returns E(z), [B]."""
        params, state = self.param("law", self._fresh, latents)
        frozen = Frozen(self.model, params)
        eps = to_eps(self.model, params, latents)
        return -self.prior.log_tilt(frozen, state, eps)

    def _fresh(self, key, latents):
        """Makes an untrained state on an untrained generator."""
        del latents
        frozen = Frozen(self.model, init(key, self.model))
        x = jnp.zeros((_DRAWS, *self.model.image_shape), frozen.dtype)
        draws = Draws(frozen.noise(key, _DRAWS), x)
        return frozen.params, self.prior.init(key, frozen, draws)


def as_model(law: Law, chain: Any = None) -> tuple[Model, Params]:
    """Makes a model of a law with a density, and its parameters.

    Args:
      law: of `jebm.priors`.
      chain: of the model's prior; None for 200 steps of `jebm.MALA`. The law's own
        draws need none: `jebm.sample(..., prior=law)`.

    Raises:
      ValueError: if the prior has no density.

    Example:
      >>> import jebm
      >>> frozen = jebm.priors.freeze(*jebm.load_pretrained("digits"))
      >>> prior = jebm.priors.Flow(width=8, depth=1, num_integration_steps=2)
      >>> draws = jebm.priors.Draws(frozen.noise(jax.random.key(0), 8))
      >>> state = prior.init(jax.random.key(1), frozen, draws)
      >>> model, params = as_model(jebm.priors.Law(prior, frozen, state))
      >>> x = jnp.full((2, 8, 8, 1), 0.5)
      >>> jebm.scores.score(jax.random.key(2), model, params, x).shape
      (2,)
    """
    prior, frozen = law.prior, law.frozen
    if prior.density is None:
        raise ValueError(f"{type(prior).__name__} has no density, and so no energy")
    chains = Chains(chain or MALA(200, 0.3), frozen.model.chains.posterior)
    energy = Tilt(prior, frozen.model)
    model = dataclasses.replace(frozen.model, energy=energy, chains=chains)
    variables = {"params": {"law": (frozen.params, law.state)}}
    return model, Params(frozen.params.backbone, variables)
