"""An energy of the image, on top of a frozen generator.

    log p(eps_x, eps_z) = -E(x) - |eps_x|^2 / 2 - |eps_z|^2 / 2 - log Z
    x = E[x | T(eps_z)] + sigma eps_x

E learns by maximum likelihood: images of the data against the x of persistent chains.
A Gaussian likelihood has a sigma; under any other, and where it is left out, x is the
decoder's mean, and there is no eps_x. The draws are of eps_z. (VAEBM, arXiv 2010.00654)
"""

import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jebm import langevin
from jebm.energies import Conv
from jebm.likelihoods import Gaussian
from jebm.priors import walks
from jebm.priors.base import Gradient


@dataclasses.dataclass(frozen=True)
class PixelEBM(Gradient):
    """An energy of pixels, drawn by chains through the decoder.

    Attributes:
      energy: a Linen module that maps (x,), x [N, H, W, C], to [N] in nats.
      pixel_noise: whether x has the noise of a Gaussian likelihood. Where sigma is much
        larger than the noise of the images, E learns little else.
      gradient_penalty: times mean |grad E|^2 over the noise of the chains.
      persistent_chains, persistent_steps: batches must divide the chains.
      target_acceptance: that the step of the chains follows.
      step_size: of the first chains.
      chain_steps: of a draw; effort multiplies them.

    Example:
      >>> import jebm
      >>> frozen = jebm.priors.freeze(*jebm.load_pretrained("digits"))
      >>> x = frozen.decode(frozen.noise(jax.random.key(0), 8))
      >>> energy = Conv(4, (8,))
      >>> prior = PixelEBM(energy=energy, persistent_chains=8, persistent_steps=2)
      >>> draws = frozen.draws(jax.random.key(1), x)
      >>> state = prior.init(jax.random.key(2), frozen, draws)
      >>> state, info = prior.update(jax.random.key(3), frozen, state, draws)
      >>> info["acceptance"].shape
      ()
    """

    density: ClassVar[str | None] = None
    cannot: ClassVar[str] = (
        "give a density of eps: that takes an integral over the pixels' noise"
    )

    energy: nn.Module = Conv(32, (100,))
    pixel_noise: bool = True
    gradient_penalty: float = 1e-3
    persistent_chains: int = 500
    persistent_steps: int = 10
    target_acceptance: float = 0.7
    step_size: float = 0.2
    chain_steps: int = 200

    def start(self, key, frozen, draws):
        """Initialises the energy, and chains at N(0, I); see `Gradient`."""
        del draws
        key_energy, key_chains = jax.random.split(key)
        x = jnp.zeros((1, *frozen.model.image_shape), jnp.float32)
        params = self.energy.init(key_energy, (x,))
        chains = self._noise(key_chains, frozen, self.persistent_chains)
        step_size = jnp.asarray(self.step_size, frozen.dtype)
        params = jax.tree.map(lambda leaf: leaf.astype(frozen.dtype), params)
        return params, walks.Walk(chains, step_size)

    def update(self, key, frozen, state, draws):
        """Takes one step on images and chains; see `Prior`.

        Raises:
          ValueError: if there are no images.
        """
        if draws.x is None:
            raise ValueError("PixelEBM learns from images: draws.x must not be None")
        return super().update(key, frozen, state, draws)

    def loss(self, key, frozen, state, params, draws):
        """Computes E of the data less E of the chains, and the penalty."""
        x = draws.x.astype(frozen.dtype)
        negative, walk, acceptance = walks.visit(
            key,
            state.memory,
            state.step,
            len(x),
            functools.partial(self._logdensity, frozen, state.params),
            self.persistent_steps,
            self.target_acceptance,
        )
        plus = self.energy.apply(params, (x,))
        energy = functools.partial(self._energy, frozen, params)
        minus, slopes = jax.vmap(jax.value_and_grad(energy))(negative)
        steepness = sum((leaf**2).sum() for leaf in jax.tree.leaves(slopes)) / len(x)
        contrast = plus.mean() - minus.mean()
        value = contrast + self.gradient_penalty * steepness
        info = {
            "loss": value,
            "energy_positive": plus.mean(),
            "energy_negative": minus.mean(),
            "acceptance": acceptance,
            "step_size": state.memory.step_size,
        }
        return value, (walk, info)

    def sample(self, key, frozen, state, num, effort=1):
        """Draws eps_z by a tested chain of both noises, from N(0, I)."""
        end, _ = self._run(key, frozen, state, num, effort)
        return end[: len(frozen.shapes)]

    def images(self, key, frozen, state, num, effort=1) -> jax.Array:
        """Draws x, the noise of pixels included, [num, H, W, C]; of the same chains."""
        end, _ = self._run(key, frozen, state, num, effort)
        return image(frozen, end)

    def trained(self, state):
        """Leaves out chains too; see `Gradient`."""
        memory = state.memory._replace(positions=())
        return super().trained(state).replace(memory=memory)

    def _run(self, key, frozen, state, num, effort):
        return walks.run(
            walks.example_keys(key, num, walks.STEPS),
            self._noise(key, frozen, num),
            functools.partial(self._logdensity, frozen, state.ema),
            self.chain_steps * effort,
            state.memory.step_size,
        )

    def _noise(self, key, frozen, num):
        """Draws (*eps_z, eps_x), or eps_z alone."""
        eps = frozen.noise(key, num)
        if scale_of(frozen) is None or not self.pixel_noise:
            return eps
        zeros = jnp.zeros(frozen.model.image_shape, frozen.dtype)
        keys = walks.example_keys(key, num, walks.EXTRA)
        return (*eps, jax.vmap(langevin.normal_like, in_axes=(0, None))(keys, zeros))

    def _energy(self, frozen, params, position):
        """Computes E of one position, []."""
        batched = jax.tree.map(lambda leaf: leaf[None], position)
        return self.energy.apply(params, (image(frozen, batched),))[0]

    def _logdensity(self, frozen, params, position):
        squares = sum((leaf**2).sum() for leaf in position)
        return -self._energy(frozen, params, position) - 0.5 * squares


def scale_of(frozen) -> float | None:
    """Returns sigma; None where the likelihood is not Gaussian."""
    likelihood = frozen.model.likelihood
    return likelihood.scale if isinstance(likelihood, Gaussian) else None


def image(frozen, position) -> jax.Array:
    """Computes x of (*eps_z, eps_x), or of eps_z alone, [N, H, W, C]."""
    layers = len(frozen.shapes)
    x = frozen.decode(position[:layers])
    return x + scale_of(frozen) * position[layers] if position[layers:] else x
