"""A diffusion of eps in three levels, each the energy of a conditional law.

    y = abar_t eps + sbar_t n,    y+ = a_{t+1} y + sigma_{t+1} n',    n, n' ~ N(0, I)
    log p_t(y | y+) = f(T(y), t) / s_t - |a_{t+1} y - y+|^2 / (2 sigma_{t+1}^2)
                      - |y|^2 / 2

Level t learns to undo one step of noise; at the top one y+ says nothing of y, and its
term is left out. The conditional laws are so narrow that a chain of K steps from y+
follows them. Levels are at the steps 0, 250, 500 and 999 of a linear schedule from 1e-4
to 2e-2. s_t is the square of a step. (arXiv 2405.13910; 2012.08125)
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jebm import langevin, mala, spectral
from jebm.networks import MLP
from jebm.priors import walks
from jebm.priors.base import Gradient

NUM_LEVELS = 3
# Of the levels 0, 1, 2 and of pure noise: what is left of eps, and of the one before.
_LEFT = np.sqrt(np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000)))[[0, 250, 500, 999]]
_KEPT = np.append(_LEFT[0], _LEFT[1:] / _LEFT[:-1])
ABAR, SBAR = _LEFT[:-1], np.sqrt(1 - _LEFT[:-1] ** 2)  # of y
A, SIGMA = _KEPT[1:], np.sqrt(1 - _KEPT[1:] ** 2)  # of y+ given y
PUBLISHED = SBAR * SIGMA**2 / SBAR[0]  # s_t / s


class Memory(NamedTuple):
    """What is no parameter."""

    step_sizes: jax.Array  # of each level's chain, [3]
    spectral: spectral.Vectors  # {} without a bound


@dataclasses.dataclass(frozen=True)
class Diffusion(Gradient):
    """Three conditional energies, of one network that is told the level.

    Published: s_t = s sbar_t sigma_{t+1}^2 / sbar_0 = s (.479, 58.9, 96.0), with
    s = 3e-5 (CIFAR-10) or 2e-5 (HQ-256), so that s_t is 1.4e-5, .0018 and .0029; all
    kernels of spectral norm 1, no tests. In the few units of a small hierarchy a chain
    of such steps stays where it is. The s_t below are the squares of the steps of which
    seven tenths are accepted on `digits`; at them f is of the size of an energy.

    Attributes:
      s: s_t of each level, from the bottom. It scales f, and is the square of the first
        steps.
      widths, activation: of f, an MLP without a last bias.
      of_noise: f reads y itself instead of T(y).
      spectral_bound: of every kernel of f; 0 for none.
      chain_steps: K, in learning and of each level of a draw, which effort multiplies.
      adjusted: whether each step is tested (MALA), so that its law is p_t at any step.
        Steps then follow the acceptance, each level's its own. Without, they stay
        sqrt(s_t), as published.
      target_acceptance: of tested steps.

    Example:
      >>> import jebm
      >>> frozen = jebm.priors.freeze(*jebm.load_pretrained("digits"))
      >>> eps = frozen.noise(jax.random.key(0), 8)
      >>> prior = Diffusion(widths=(16,), chain_steps=2)
      >>> state = prior.init(jax.random.key(1), frozen, jebm.priors.Draws(eps))
      >>> [e.shape for e in prior.sample(jax.random.key(2), frozen, state, 4)]
      [(4, 10), (4, 5)]
    """

    density: ClassVar[str | None] = None
    cannot: ClassVar[str] = "give a density: only its levels' conditional laws have one"

    s: tuple[float, float, float] = (0.2, 0.7, 0.9)
    widths: tuple[int, ...] = (200, 200)
    activation: str = "silu"
    of_noise: bool = False
    spectral_bound: float = 0.0
    chain_steps: int = 50
    adjusted: bool = True
    target_acceptance: float = 0.7

    def start(self, key, frozen, draws):
        """Initialises the network, and the first memory; see `Gradient`."""
        del draws
        key_network, key_vectors = jax.random.split(key)
        inputs = jnp.zeros((1, frozen.size + NUM_LEVELS), jnp.float32)
        params = self._network().init(key_network, inputs)
        vectors = {}
        if self.spectral_bound:
            vectors = spectral.start(key_vectors, spectral.kernels_of(params))
        memory = Memory(jnp.sqrt(jnp.array(self.s)), vectors)
        return jax.tree.map(
            lambda leaf: jnp.asarray(leaf, frozen.dtype), (params, memory)
        )

    def loss(self, key, frozen, state, params, draws):
        """Contrasts f at y with f at the end of a chain from y+, over s_t."""
        eps = frozen.flat(draws.eps)
        num, dtype, memory = len(eps), eps.dtype, state.memory
        key_level, key_pair, key_chain = jax.random.split(key, 3)
        level = jax.random.randint(key_level, (num,), 0, NUM_LEVELS)
        y, noisy = _pair(key_pair, eps, level)
        params, vectors = self._bounded(params, memory.spectral)
        held = jax.lax.stop_gradient(params)
        end, acceptance = self._run(
            key_chain, frozen, held, memory.step_sizes, noisy, level, self.chain_steps
        )

        plus, minus = (
            jax.vmap(lambda y, level: self._energy(frozen, params, y, level))(y, level)
            for y in (y, jax.lax.stop_gradient(end))
        )
        value = (minus - plus).mean()
        step_sizes, info = memory.step_sizes, {"loss": value}
        if self.adjusted:
            of_level = jax.nn.one_hot(level, NUM_LEVELS, dtype=dtype)
            count = of_level.sum(axis=0)
            rates = acceptance @ of_level / jnp.maximum(count, 1)
            rates = jnp.where(count > 0, rates, self.target_acceptance)  # none was seen
            step_sizes = mala.adapted_step(step_sizes, rates, self.target_acceptance)
            info |= {f"acceptance_{t}": rates[t] for t in range(NUM_LEVELS)}
        info |= {f"step_size_{t}": step_sizes[t] for t in range(NUM_LEVELS)}
        return value, (Memory(step_sizes, vectors), info)

    def sample(self, key, frozen, state, num, effort=1):
        """Goes from N(0, I) through the levels from the top, K steps in each."""
        params, _ = self._bounded(state.ema, state.memory.spectral)
        key_noise, key_levels = jax.random.split(key)
        y = frozen.flat(frozen.noise(key_noise, num))
        steps, num_steps = state.memory.step_sizes, self.chain_steps * effort

        def through(y, t):
            key, level = jax.random.fold_in(key_levels, t), jnp.full(num, t)
            return self._run(key, frozen, params, steps, y, level, num_steps)[0], None

        levels = jnp.arange(NUM_LEVELS)
        return frozen.layers(jax.lax.scan(through, y, levels, reverse=True)[0])

    def _run(self, key, frozen, params, step_sizes, noisy, level, num_steps):
        """Runs chains of p_t(y | y+) from y+."""

        def logdensity(y, noisy, level):
            value = self._energy(frozen, params, y, level)
            return value + log_conditional(y, noisy, level)

        keys = walks.example_keys(key, len(noisy), walks.STEPS)
        kernel = mala.MALA if self.adjusted else langevin.LANGEVIN
        steps = step_sizes[level]
        return walks.run(
            keys, noisy, logdensity, num_steps, steps, noisy, level, kernel=kernel
        )

    def _energy(self, frozen, params, y, level):
        """Computes f / s_t of one y [D], []."""
        inputs = y[None]
        if not self.of_noise:
            inputs = frozen.flat(frozen.transport(frozen.layers(inputs))[0])
        told = jax.nn.one_hot(level, NUM_LEVELS, dtype=y.dtype)[None]
        inputs = jnp.concatenate([inputs, told], axis=1)
        f = self._network().apply(params, inputs)[0, 0]
        return f / jnp.array(self.s, y.dtype)[level]

    def _network(self):
        return MLP(self.widths, 1, self.activation, energy_head=True)

    def _bounded(self, params, vectors):
        if not self.spectral_bound:
            return params, vectors
        return spectral.bounded(params, vectors, self.spectral_bound)


def log_conditional(y: jax.Array, noisy: jax.Array, level: jax.Array) -> jax.Array:
    """Computes log p_t(y | y+) of one y [D] without its f, [], up to a constant."""
    a, variance = (jnp.asarray(v, y.dtype)[level] for v in (A, SIGMA**2))
    likelihood = -jnp.sum((a * y - noisy) ** 2) / (2 * variance)
    return jnp.where(level < NUM_LEVELS - 1, likelihood, 0) - 0.5 * y @ y


def _pair(key, eps, level):
    """Draws y at the level of each example, and y+."""
    key_y, key_noisy = jax.random.split(key)

    def mixed(key, x, kept, noise):
        kept, noise = (jnp.asarray(v, eps.dtype)[level, None] for v in (kept, noise))
        return kept * x + noise * jax.random.normal(key, x.shape, x.dtype)

    y = mixed(key_y, eps, ABAR, SBAR)
    return y, mixed(key_noisy, y, A, SIGMA)
