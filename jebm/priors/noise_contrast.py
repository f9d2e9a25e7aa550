"""Noise contrast in several stages: classifiers, each against the product so far.

    g(eps) = sum_j log r_j(eps)

Stage j learns log r_j as the logit of a classifier, by the logistic loss: draws of Q,
the noise behind posterior samples, against draws of N(eps) r_1 ... r_{j-1}. One stage
saturates where Q is far from N(0, I); of several, each has less to tell.
(Xiao and Han 2022; one stage a layer: arXiv 2010.02917)
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp

from jebm.networks import Logit
from jebm.priors import annealed, walks
from jebm.priors.base import UNNORMALISED, Gradient


@dataclasses.dataclass(frozen=True)
class MultiStage(Gradient):
    """Noise contrast in stages.

    The steps of learning are shared out evenly: stage j is step // (num_steps /
    num_stages), and the learning rate falls anew in each. Parameters of the other
    stages stay as they are. The negatives are persistent MALA chains of the product of
    the stages before.

    Attributes:
      num_stages: classifiers, at most `num_steps` of them.
      widths, activation: of each, an MLP.
      persistent_chains, persistent_steps: of the negatives; batches must divide the
        chains.
      target_acceptance: that the step of the chains follows.
      step_size: of the first chains.
      chain_steps: of a draw; effort multiplies them.
      num_particles, num_temperatures: of `log_z`.

    Example:
      >>> import jebm
      >>> frozen = jebm.priors.freeze(*jebm.load_pretrained("digits"))
      >>> eps = frozen.noise(jax.random.key(0), 8)
      >>> prior = MultiStage(widths=(16,), persistent_chains=8)
      >>> state = prior.init(jax.random.key(1), frozen, jebm.priors.Draws(eps))
      >>> prior.log_tilt(frozen, state, eps)[0]  # all r = 1 at the start
      Array(0., dtype=float32)
    """

    density: ClassVar[str | None] = UNNORMALISED
    cannot: ClassVar[str] = "draw without a chain"

    ema_decay: float = 0.99  # a stage is short
    num_stages: int = 4
    widths: tuple[int, ...] = (200, 200)
    activation: str = "gelu"
    persistent_chains: int = 1000
    persistent_steps: int = 20
    target_acceptance: float = 0.7
    step_size: float = 0.5
    chain_steps: int = 200
    num_particles: int = 500
    num_temperatures: int = 500

    def start(self, key, frozen, draws):
        """Stacks parameters by stage, and starts chains at N(0, I); see `Gradient`."""
        del draws
        keys = jax.random.split(key, self.num_stages + 1)
        eps = jnp.zeros((1, frozen.size), jnp.float32)
        params = jax.vmap(lambda key: self._network().init(key, eps))(keys[1:])
        params = jax.tree.map(lambda leaf: leaf.astype(frozen.dtype), params)
        chains = frozen.flat(frozen.noise(keys[0], self.persistent_chains))
        return params, walks.Walk(chains, jnp.asarray(self.step_size, frozen.dtype))

    def loss(self, key, frozen, state, params, draws):
        """Computes the logistic loss of the stage whose turn it is."""
        eps, stage = frozen.flat(draws.eps), self._stage(state.step)
        before = self._numbers() < stage
        negative, walk, acceptance = walks.visit(
            key,
            state.memory,
            state.step,
            len(eps),
            lambda eps: self._logdensity(state.params, before, eps),
            self.persistent_steps,
            self.target_acceptance,
        )
        current = jax.tree.map(lambda leaf: leaf[stage], params)
        logit = functools.partial(self._network().apply, current)
        plus, minus = logit(eps), logit(negative)
        value = jax.nn.softplus(-plus).mean() + jax.nn.softplus(minus).mean()
        info = {
            "loss": value,
            "stage": stage,
            "log_r_positive": plus.mean(),
            "log_r_negative": minus.mean(),
            "acceptance": acceptance,
            "step_size": state.memory.step_size,
        }
        return value, (walk, info)

    def sample(self, key, frozen, state, num, effort=1):
        """Draws by a tested chain from N(0, I), of the step that learning has found."""
        start = frozen.flat(frozen.noise(key, num))
        keys = walks.example_keys(key, num, walks.STEPS)
        end, _ = walks.run(
            keys,
            start,
            lambda eps: self._logdensity(state.ema, self._all(), eps),
            self.chain_steps * effort,
            state.memory.step_size,
        )
        return frozen.layers(end)

    def log_tilt(self, frozen, state, eps):
        """Sums all logits, [N] in nats."""
        return jax.vmap(functools.partial(self._tilt, state.ema))(frozen.flat(eps))

    def log_z(self, key, frozen, state):
        """Estimates log Z by annealing; near 0 where the classifiers are right."""
        return annealed.log_z(
            key, self._tilt, state.ema, frozen.size, frozen.dtype,
            self.num_particles, self.num_temperatures,
        )  # fmt: skip

    def trained(self, state):
        """Leaves out chains too; see `Gradient`."""
        memory = state.memory._replace(positions=())
        return super().trained(state).replace(memory=memory)

    def _network(self):
        return Logit(self.widths, self.activation)

    def _numbers(self):
        return jnp.arange(self.num_stages, dtype=jnp.int32)

    def _steps(self):
        """Updates of a stage."""
        return self.num_steps // self.num_stages

    def _stage(self, step):
        return jnp.minimum(step // self._steps(), self.num_stages - 1)

    def _all(self):
        return jnp.ones(self.num_stages, bool)

    def _tilt(self, params, eps):
        """Computes g of one eps [D], of all stages."""
        return self._sum(params, self._all(), eps)

    def _logdensity(self, params, stages, eps):
        """Computes log N(eps) + g(eps) of some stages, up to a constant."""
        return self._sum(params, stages, eps) - 0.5 * eps @ eps

    def _sum(self, params, stages, eps):
        logits = jax.vmap(lambda one: self._network().apply(one, eps[None])[0])(params)
        return jnp.where(stages, logits, 0).sum()

    def optimizer(self):
        """Makes Adam, its rate falling anew per stage; it moves that stage alone."""
        import optax  # slow to import, and not needed to sample

        steps, last = self._steps(), self.num_stages - 1
        one = optax.cosine_decay_schedule(self.learning_rate, steps, alpha=0.02)
        starts = [steps * (j + 1) for j in range(last)]
        schedule = optax.join_schedules([one] * self.num_stages, starts)

        # Adam goes on moving what no longer has a gradient.
        def only_current(updates, step, params=None):
            del params
            current = self._numbers() == self._stage(step)

            def one(update):
                shape = (-1, *[1] * (update.ndim - 1))
                return jnp.where(current.reshape(shape), update, 0)

            return jax.tree.map(one, updates), step + 1

        only = optax.GradientTransformation(
            lambda params: jnp.zeros((), jnp.int32), only_current
        )
        clip = optax.clip_by_global_norm(100.0)
        return optax.chain(clip, optax.adam(schedule), only)
