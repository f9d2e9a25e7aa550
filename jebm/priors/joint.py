"""The joint energy-based prior, learned from its own chains.

    g(eps) = -E(T(eps))            `Joint`          (arXiv 2306.06323)
    g(eps) = -E(eps)               `Concatenated`   (arXiv 2310.09604)

The rule is `jebm.second_stage` with tested steps, whose law is the density itself; the
second reads the independent noise of all layers, under a bound of spectral norms.
"""

import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jebm import partition
from jebm.chains import example_keys, run_chains
from jebm.distributions import Normal
from jebm.energies import Joint as JointEnergy
from jebm.energies import Layerwise
from jebm.kernels import MALA, Chain, Chains, Langevin
from jebm.learning import Learner, Options, second_stage
from jebm.model import Model, Params
from jebm.partition import log_tilt
from jebm.priors.base import UNNORMALISED, Prior, falling_adam


@dataclasses.dataclass(frozen=True)
class Joint(Prior):
    """An energy of the latents: of each layer, of all together, or of the state.

    Attributes:
      energy: a Linen module of `jebm.energies`, or any other under their contract.
      learning_rate: at the start; it falls along a cosine to a fiftieth.
      num_steps: updates that the fall takes.
      nce_steps: updates, of the first ones, that contrast with draws of N(0, I) in
        place of chains: cheap where the hierarchy is deep (noise contrast).
      chain_steps: of a draw; effort multiplies them.
      step_size: of the first chains; it follows an acceptance of .7.
      persistent_chains, persistent_steps, reinit_probability, gradient_penalty,
        energy_penalty, energy_spectral_bound, ema_decay: of `jebm.learning.Options`;
        batches must divide the chains.
      num_particles, num_temperatures: of `log_z`.

    Example:
      >>> import jebm
      >>> frozen = jebm.priors.freeze(*jebm.load_pretrained("digits"))
      >>> eps = frozen.noise(jax.random.key(0), 8)
      >>> prior = Joint(persistent_chains=8, persistent_steps=2)
      >>> state = prior.init(jax.random.key(1), frozen, jebm.priors.Draws(eps))
      >>> prior.log_tilt(frozen, state, eps)[0]  # E = 0 at the start
      Array(0., dtype=float32)
    """

    density: ClassVar[str | None] = UNNORMALISED
    cannot: ClassVar[str] = "draw without a chain"

    energy: nn.Module = dataclasses.field(default_factory=Layerwise)
    learning_rate: float = 2e-3
    num_steps: int = 2000
    nce_steps: int = 0
    chain_steps: int = 200
    step_size: float = 0.3
    persistent_chains: int = 1000
    persistent_steps: int = 20
    reinit_probability: float = 0.005
    gradient_penalty: float = 1e-3
    energy_penalty: float = 0.0
    energy_spectral_bound: float = 0.0
    ema_decay: float = 0.999
    num_particles: int = 500
    num_temperatures: int = 500

    def init(self, key, frozen, draws):
        """Initialises the learner of the energy; see `Prior`."""
        del draws
        return self._learner(frozen).init(key, self._backbone(frozen))

    def update(self, key, frozen, state, draws):
        """Contrasts energies at posterior samples and at chains; see `Prior`."""
        return self._learner(frozen).update(key, state, self._seen(frozen, draws.eps))

    def sample(self, key, frozen, state, num, effort=1):
        """Draws by a tested chain from N(0, I), of the step that learning has found."""
        keys = example_keys(key, jnp.arange(num))
        chain = MALA(self.chain_steps * effort, state.step_sizes["prior"])
        return run_chains(keys, self._model(frozen), state.ema, chain).position

    def log_tilt(self, frozen, state, eps):
        """Computes -E, [N] in nats."""
        return jax.vmap(log_tilt(self._model(frozen), state.ema))(eps)

    def log_z(self, key, frozen, state):
        """Estimates log Z by annealing: see `jebm.partition.log_z`."""
        return partition.log_z(
            key, self._model(frozen), state.ema,
            num_particles=self.num_particles, num_temperatures=self.num_temperatures,
        )  # fmt: skip

    def trained(self, state):
        """Leaves out chains, the optimiser's state, and what is averaged elsewhere."""
        return state.replace(params=(), opt_state=(), persistent=(), spectral=())

    def num_parameters(self, state):
        """Counts the parameters of the energy."""
        return sum(leaf.size for leaf in jax.tree.leaves(state.ema.energy))

    def model(self, frozen, state, chain: Chain | None = None) -> tuple[Model, Params]:
        """Returns the model of this energy.

        Args:
          frozen, state: of `init`.
          chain: of its prior; None for one of the step that learning has found.

        Raises:
          ValueError: for no chain in a compiled function, where no step is known.
        """
        if chain is None:
            step_size = state.step_sizes["prior"]
            if isinstance(step_size, jax.core.Tracer):
                raise ValueError(
                    "chain must be given in a compiled function, where the step size "
                    "that was learned is not known; or make the model outside of it"
                )
            chain = MALA(self.chain_steps, float(step_size))
        model = self._model(frozen)
        chains = dataclasses.replace(model.chains, prior=chain)
        return dataclasses.replace(model, chains=chains), state.ema

    def _learner(self, frozen):
        return _learner_of(self, self._model(frozen))

    def _model(self, frozen):
        chain = MALA(self.chain_steps, self.step_size)
        chains = Chains(chain, frozen.model.chains.posterior)
        return dataclasses.replace(frozen.model, energy=self.energy, chains=chains)

    def _backbone(self, frozen):
        return frozen.params.backbone

    def _seen(self, frozen, eps):
        return frozen.transport(eps)[0]


@functools.lru_cache(maxsize=8)
def _learner_of(prior: Joint, model: Model) -> Learner:
    """Returns the one learner of a prior: each has a compiled step of its own."""
    optimizer = falling_adam(prior.learning_rate, prior.num_steps)
    options = Options(
        persistent_chains=prior.persistent_chains,
        persistent_steps=prior.persistent_steps,
        reinit_probability=prior.reinit_probability,
        target_acceptance=0.7,
        gradient_penalty=prior.gradient_penalty,
        energy_penalty=prior.energy_penalty,
        energy_spectral_bound=prior.energy_spectral_bound,
        ema_decay=prior.ema_decay,
    )
    return second_stage(model, None, optimizer, options, nce_steps=prior.nce_steps)


@dataclasses.dataclass(frozen=True)
class Concatenated(Joint):
    """One energy of the noise of all layers, of bounded spectral norms.

    Attributes are those of `Joint`.
    """

    cannot: ClassVar[str] = "draw without a chain, or see what the noise decodes to"

    energy: nn.Module = dataclasses.field(default_factory=JointEnergy)
    energy_spectral_bound: float = 3.0

    def init(self, key, frozen, draws):
        """Initialises the learner, in the precision of the generator; see `Prior`."""
        state = super().init(key, frozen, draws)

        def cast(leaf):
            floating = jnp.issubdtype(leaf.dtype, jnp.floating)
            return leaf.astype(frozen.dtype) if floating else leaf

        return jax.tree.map(cast, state)

    def model(self, frozen, state, chain=None):
        """Refuses: its energy is not one of the latents."""
        raise ValueError("a Concatenated prior is no energy of the latents z")

    def _model(self, frozen):
        whole = frozen.model
        outputs = whole.likelihood.num_outputs(whole.image_shape[-1])
        shape = (*whole.image_shape[:2], outputs)
        # Inside another module it would become a part of that.
        noise = _Noise(frozen.shapes, shape, frozen.dtype, parent=None)
        chains = Chains(MALA(self.chain_steps, self.step_size), Langevin(20, 0.1))
        return dataclasses.replace(
            whole, backbone=noise, energy=self.energy, chains=chains
        )

    def _backbone(self, frozen):
        del frozen
        return {"params": {}}

    def _seen(self, frozen, eps):
        del frozen
        return eps


class _Noise(nn.Module):
    """The hierarchy whose latents are its noise: N(0, I), and T the identity."""

    latent_shapes: tuple[tuple[int, ...], ...]
    output_shape: tuple[int, int, int]
    dtype: jnp.dtype

    has_encoder = False

    def start(self, batch: int) -> jax.Array:
        """Returns an empty state that holds the number of examples, [B, 0]."""
        return jnp.zeros((batch, 0), self.dtype)

    def prior(self, i: int, state: jax.Array) -> Normal:
        """Returns N(0, I)."""
        zeros = jnp.zeros((len(state), *self.latent_shapes[i]), state.dtype)
        return Normal(zeros, jnp.ones_like(zeros))

    def merge(self, i: int, state: jax.Array, z: jax.Array) -> jax.Array:
        """Hands nothing down."""
        del i, z
        return state

    def decode(self, state: jax.Array) -> jax.Array:
        """Returns zeros as parameters of the likelihood: there is no image."""
        return jnp.zeros((len(state), *self.output_shape), state.dtype)
