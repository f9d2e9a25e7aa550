"""A prior as a model: it goes wherever one with a joint EBM goes.

    E(z) = -g(T^-1(z))

Such a model draws as the prior does, `jebm.sample(key, *as_model(law), 16)`, and has
its density as an energy: in scores, log-likelihoods, chains, other libraries' samplers.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from jebm.chains import to_eps
from jebm.hierarchy import Latents
from jebm.kernels import MALA, Chain, Chains
from jebm.model import Model, Params, init
from jebm.priors.base import Draws, Frozen, Law, Prior, untilted
from jebm.priors.joint import Concatenated, Joint

_DRAWS = 1024  # that a state of the right shapes is made of


class Tilt(nn.Module):
    """Minus the tilt of a prior, as an energy of the latents.

    Its parameters are the frozen generator's, which T^-1 needs, and what
    `Law.trained` keeps of the state; `as_model` makes them.

    Attributes:
      prior: the prior.
      model: of the frozen generator.
    """

    prior: Prior
    model: Model

    @nn.compact
    def __call__(self, latents: Latents) -> jax.Array:
        """Returns E(z), [B].

        Raises:
          ValueError: if the prior has no density.
        """
        params, state = self.param("law", self._fresh)
        frozen = Frozen(self.model, params)
        if self.prior.density is None and self.is_initializing():
            return jnp.zeros_like(latents[0], shape=len(latents[0]))
        eps = to_eps(self.model, params, latents)
        return -self.prior.log_tilt(frozen, state, eps)

    def _fresh(self, key):
        """Makes an untrained state on an untrained generator."""
        frozen = Frozen(self.model, init(key, self.model))
        x = jnp.zeros((_DRAWS, *self.model.image_shape), frozen.dtype)
        draws = Draws(frozen.noise(key, _DRAWS), x)
        state = self.prior.init(key, frozen, draws)
        return frozen.params, self.prior.trained(state)


def as_model(law: Law, chain: Chain | None = None) -> tuple[Model, Params]:
    """Makes a model of a law, and its parameters.

    `jebm.sample` draws from it as the prior itself does, unless it is asked for a
    chain, another temperature, or layers below others. A `Joint` prior becomes the
    ordinary model of its energy, which always draws by the chain. Of a prior without a
    density the model can be sampled, and has no scores.

    Args:
      law: of `jebm.priors`.
      chain: of the model's prior; None for 200 steps of `jebm.MALA`, of a `Joint` for
        its own.

    Raises:
      ValueError: for a `Joint` without a chain in a compiled function, where the step
        size that it has learned is not known.

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
      >>> jebm.sample(jax.random.key(3), model, params, 4).x.shape
      (4, 8, 8, 1)
    """
    prior, frozen, posterior = law.prior, law.frozen, law.frozen.model.chains.posterior
    if isinstance(prior, Joint) and not isinstance(prior, Concatenated):
        return prior.model(frozen, law.state, chain)
    chains = Chains(chain or MALA(200, 0.3), posterior)
    energy = Tilt(prior, frozen.model)
    model = dataclasses.replace(frozen.model, energy=energy, chains=chains)
    variables = {"params": {"law": (frozen.params, law.trained().state)}}
    return model, Params(frozen.params.backbone, variables)


def tilted_by(prior: Prior, model: Model) -> Model:
    """Returns the model, its energy that of a prior: the model of `as_model`.

    Example:
      >>> import jebm
      >>> model, _ = jebm.load_pretrained("digits")
      >>> type(tilted_by(jebm.priors.Gaussian(), model).energy).__name__
      'Tilt'
    """
    return dataclasses.replace(model, energy=Tilt(prior, untilted(model)))


def draws_itself(model: Model) -> bool:
    """Says whether the model is one that `as_model` has made, and needs no chain.

    Example:
      >>> import jebm
      >>> draws_itself(jebm.load_pretrained("digits")[0])
      False
    """
    return isinstance(model.energy, Tilt)


def law_of(model: Model, params: Params) -> Law | None:
    """Returns the law of a model that `as_model` has made; None of any other.

    Example:
      >>> import jebm
      >>> law_of(*jebm.load_pretrained("digits")) is None
      True
    """
    if not isinstance(model.energy, Tilt):
        return None
    generator, state = params.energy["params"]["law"]
    return Law(model.energy.prior, Frozen(model.energy.model, generator), state)


def has_density(model: Model) -> bool:
    """Says whether the model's energy has values; it has none of some priors.

    Example:
      >>> import jebm
      >>> has_density(jebm.load_pretrained("digits")[0])
      True
    """
    energy = model.energy
    return not isinstance(energy, Tilt) or energy.prior.density is not None
