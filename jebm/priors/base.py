"""The contract of priors of a frozen generator, and what they learn from.

    z = T(eps),     log p(eps) = log N(eps; 0, I) + g(eps) - log Z

The hierarchy T, encoder and decoder are trained and stay as they are. A prior is a law
of the noise eps behind them, learned from the noise behind posterior samples. Each is a
tilt g of N(0, I), and g = 0 is the Gaussian hierarchy itself, so that for every prior

    log p(z) = log p_beta(z) + g(T^-1(z)) - log Z

and log p(x) needs no Jacobian of T.
"""

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jebm import checks, types
from jebm.chains import (
    decode,
    draw_noise,
    encode,
    example_keys,
    reach,
)
from jebm.hierarchy import Latents, has_encoder, inverse_transport, log_standard_normal
from jebm.importance import Estimate
from jebm.kernels import ANCESTRAL, Chains
from jebm.model import Model, Params, float_dtype

if TYPE_CHECKING:  # slow to import, and not needed to sample
    import optax

NORMALISED, UNNORMALISED = "normalised", "up to log Z"
ESTIMATED = "normalised up to an estimate of Z"  # `log_z` tells what is left


class Draws(NamedTuple):
    """Images and the noise behind a posterior sample of each: what a prior learns from.

    Made by `Frozen.draws`; priors of eps alone do not read `x`, which may be None.
    """

    eps: Latents  # bottom to top, each [N, *shape_i]
    x: jax.Array | None = None  # [N, H, W, C] in [0, 1]


@struct.dataclass
class Frozen:
    """A trained generator without its energy: T, the decoder, and the encoder if any.

    Example:
      >>> import jebm
      >>> frozen = freeze(*jebm.load_pretrained("digits"))
      >>> eps = frozen.noise(jax.random.key(0), 3)
      >>> frozen.decode(eps).shape, frozen.size
      ((3, 8, 8, 1), 15)
    """

    model: Model = struct.field(pytree_node=False)
    params: Params

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Returns the shapes of eps, bottom to top."""
        return self.model.backbone.latent_shapes

    @property
    def size(self) -> int:
        """Counts the numbers in one eps."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def dtype(self) -> jnp.dtype:
        """Returns the dtype of eps."""
        return float_dtype(self.params)

    def noise(self, key: types.Key, num: int) -> Latents:
        """Draws eps of N(0, I); example n draws from `fold_in(key, n)`."""
        keys = example_keys(key, jnp.arange(num))
        return draw_noise(keys, self.model, self.params)

    def transport(self, eps: Latents) -> tuple[Latents, Any]:
        """Computes T(eps): the latents, and the state that the decoder reads."""
        return reach(self.model, self.params, eps, "eps")

    def decode(self, eps: Latents) -> jax.Array:
        """Computes E[x | T(eps)], [N, H, W, C] in [0, 1]."""
        return decode(self.model, self.params, *self.transport(eps))

    def draws(self, key: types.Key, x: jax.Array) -> Draws:
        """Draws z ~ q(z | x) of images [N, H, W, C] in [0, 1], and returns their noise.

        Raises:
          ValueError: for other images, or if the generator has no encoder; draw z by a
            chain then (`jebm.posterior_sample`), whose noise `jebm.chains.to_eps`
            finds.
        """
        checks.images(self.model, x)
        if not has_encoder(self.model.backbone):
            raise ValueError("draws needs a backbone with an encoder")
        keys = example_keys(key, jnp.arange(len(x)))
        noise = draw_noise(keys, self.model, self.params)
        latents, priors, _ = encode(self.model, self.params, x, noise)
        return Draws(inverse_transport(latents, priors), x)

    def flat(self, eps: Latents) -> jax.Array:
        """Returns eps as vectors, [N, size]: layers side by side, bottom to top."""
        return jnp.concatenate([e.reshape(len(e), -1) for e in eps], axis=1)

    def layers(self, vectors: jax.Array) -> Latents:
        """Undoes `flat`: splits vectors [N, size] into layers."""
        layers, first = [], 0
        for shape in self.shapes:
            last = first + math.prod(shape)
            layers.append(vectors[:, first:last].reshape(-1, *shape))
            first = last
        return tuple(layers)


def freeze(model: Model, params: Params) -> Frozen:
    """Makes a `Frozen` of a trained model; its energy, if any, is left out.

    Raises:
      ValueError: if `params` do not fit the model.

    Example:
      >>> import jebm
      >>> freeze(*jebm.load_pretrained("digits")).params.energy
      {}
    """
    checks.params(model, params)
    return Frozen(untilted(model), Params(params.backbone, {}))


def untilted(model: Model) -> Model:
    """Returns the model without its energy, which no chain draws.

    Example:
      >>> import jebm
      >>> untilted(jebm.load_pretrained("digits")[0]).energy is None
      True
    """
    chains = Chains(prior=ANCESTRAL, posterior=model.chains.posterior)
    return dataclasses.replace(model, energy=None, chains=chains)


@struct.dataclass
class State:
    """What a prior that learns by gradients carries from one update to the next."""

    step: jax.Array  # int32 [], updates taken
    params: Any
    ema: Any  # the averaged parameters, which draws and densities are of
    opt_state: Any
    memory: Any = ()  # what is no parameter: chains, averages


@dataclasses.dataclass(frozen=True)
class Prior:
    """The contract of a prior: settings alone, with pure functions of pytrees.

    A new one is a subclass in a file of its own and a line in `jebm.priors.PRIORS`. Its
    settings are plain values, energies, chains or other priors: `jebm.save` of its
    model writes them by name.

    Class attributes:
      density: NORMALISED, ESTIMATED, UNNORMALISED, or None where there is none.
      cannot: what it cannot do, in a phrase for a table; "" for nothing.
    """

    density: ClassVar[str | None] = NORMALISED
    cannot: ClassVar[str] = ""

    def lacks(self, frozen: Frozen) -> str:
        """Says why it cannot learn on this generator; "" where it can."""
        del frozen
        return ""

    def init(self, key: types.Key, frozen: Frozen, draws: Draws) -> Any:
        """Returns the state before the first update, from some draws."""
        raise NotImplementedError

    def update(
        self, key: types.Key, frozen: Frozen, state: Any, draws: Draws
    ) -> tuple[Any, dict[str, jax.Array]]:
        """Takes one step on a batch; returns the state and numbers [] to watch.

        Draws are best made anew for every update: a prior with many parameters learns
        the noise of one draw of each image by heart. The same key serves all updates:
        the state's step is folded in. In a loop of your own call `jax.jit(update)`.
        """
        raise NotImplementedError

    def sample(
        self, key: types.Key, frozen: Frozen, state: Any, num: int, effort: int = 1
    ) -> Latents:
        """Draws eps, each [num, *shape_i].

        `effort` multiplies what a draw costs, where more of it brings the draw nearer
        to the prior's own law: steps of a chain or a flow, proposals. Exact draws
        ignore it.
        """
        raise NotImplementedError

    def log_tilt(self, frozen: Frozen, state: Any, eps: Latents) -> jax.Array:
        """Computes g(eps), [N] in nats, up to log Z.

        Raises:
          ValueError: if the prior has no density.
        """
        raise ValueError(f"{type(self).__name__} has no density")

    def log_z(self, key: types.Key, frozen: Frozen, state: Any) -> Estimate:
        """Estimates log Z, what `log_tilt` is to lose to be normalised; 0 if it is."""
        del key, frozen, state
        if self.density != NORMALISED:
            raise NotImplementedError(
                f"log Z of {type(self).__name__} is not estimated"
            )
        return Estimate(*map(jnp.asarray, (0.0, 0.0, jnp.inf)))

    def trained(self, state: Any) -> Any:
        """Returns the state without what only learning reads: `Law.trained` is of it.

        `sample`, `log_tilt` and `log_z` take it like the whole state.
        """
        return state

    def num_parameters(self, state: Any) -> int:
        """Counts the learned numbers."""
        params = getattr(state, "params", state)
        return sum(leaf.size for leaf in jax.tree.leaves(params))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gradient(Prior):
    """A prior whose parameters follow the gradient of a loss, by Adam.

    Attributes:
      learning_rate: at the start; it falls along a cosine to a fiftieth.
      num_steps: updates that the fall takes, and at the end of which it stays.
      ema_decay: of the averaged parameters.
    """

    learning_rate: float = 1e-3
    num_steps: int = 2000
    ema_decay: float = 0.999

    def start(self, key: types.Key, frozen: Frozen, draws: Draws) -> tuple[Any, Any]:
        """Returns the first parameters and the first memory."""
        raise NotImplementedError

    def loss(
        self,
        key: types.Key,
        frozen: Frozen,
        state: State,
        params: Any,
        draws: Draws,
    ) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
        """Returns the loss [] at `params`, and of the pass the memory and an info."""
        raise NotImplementedError

    def init(self, key, frozen, draws) -> State:
        """Returns the first `State`; see `Prior`."""
        params, memory = self.start(key, frozen, draws)
        return State(
            jnp.zeros((), jnp.int32),
            params,
            jax.tree.map(jnp.copy, params),  # of its own, so that a state is donated
            self.optimizer().init(params),
            memory,
        )

    def update(self, key, frozen, state, draws) -> tuple[State, dict[str, jax.Array]]:
        """Takes one step of Adam on the loss; see `Prior`."""
        import optax  # slow to import, and not needed to sample

        key = jax.random.fold_in(key, state.step)

        def loss(params):
            return self.loss(key, frozen, state, params, draws)

        grads, (memory, info) = jax.grad(loss, has_aux=True)(state.params)
        with jax.numpy_dtype_promotion("standard"):  # optax has float ** integer
            updates, opt_state = self.optimizer().update(
                grads, state.opt_state, state.params
            )
        params = optax.apply_updates(state.params, updates)
        step = state.step + 1
        # Short runs should not average in the initial parameters.
        decay = jnp.minimum(self.ema_decay, (1 + step) / (10 + step))
        ema = jax.tree.map(
            lambda old, new: old + (1 - decay).astype(old.dtype) * (new - old),
            state.ema,
            params,
        )
        return State(step, params, ema, opt_state, memory), info

    def trained(self, state):
        """Leaves out the optimiser's state, and parameters before they are averaged."""
        return state.replace(params=(), opt_state=())

    def optimizer(self) -> "optax.GradientTransformation":
        """Returns Adam at the falling rate; one that learns in stages has its own."""
        return falling_adam(self.learning_rate, self.num_steps)


def falling_adam(
    learning_rate: float, num_steps: int
) -> "optax.GradientTransformation":
    """Makes Adam on clipped gradients, its rate falling by a cosine to a fiftieth."""
    import optax  # slow to import, and not needed to sample

    schedule = optax.cosine_decay_schedule(learning_rate, num_steps, alpha=0.02)
    return optax.chain(optax.clip_by_global_norm(100.0), optax.adam(schedule))


@struct.dataclass
class Law:
    """A prior that has learned: what samples, scores and densities take.

    Example:
      >>> import jebm
      >>> frozen = freeze(*jebm.load_pretrained("digits"))
      >>> prior = jebm.priors.Gaussian()
      >>> state = prior.init(jax.random.key(0), frozen, Draws(()))
      >>> law = Law(prior, frozen, state)
      >>> eps = law.sample(jax.random.key(1), 4)
      >>> frozen.decode(eps).shape, law.logdensity(eps).shape
      ((4, 8, 8, 1), (4,))
    """

    prior: Prior = struct.field(pytree_node=False)
    frozen: Frozen
    state: Any

    def sample(self, key: types.Key, num: int, effort: int = 1) -> Latents:
        """Draws eps, each [num, *shape_i]."""
        return _sample(key, self, num, effort)

    def log_tilt(self, eps: Latents) -> jax.Array:
        """Computes g(eps) = log p(eps) - log N(eps; 0, I), [N] in nats, up to log Z."""
        return self.prior.log_tilt(self.frozen, self.state, eps)

    def logdensity(self, eps: Latents) -> jax.Array:
        """Computes log p(eps), [N] in nats, up to log Z."""
        return log_standard_normal(eps) + self.log_tilt(eps)

    def log_z(self, key: types.Key) -> Estimate:
        """Estimates log Z; 0 of a density that is normalised."""
        return self.prior.log_z(key, self.frozen, self.state)

    def trained(self) -> "Law":
        """Returns the same law, less what only learning reads: it is to be kept."""
        return dataclasses.replace(self, state=self.prior.trained(self.state))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _sample(key, law, num, effort):
    return law.prior.sample(key, law.frozen, law.state, num, effort)
