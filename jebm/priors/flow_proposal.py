"""A tilt whose draws are proposed by a flow: no chain has to mix.

    p(eps) = N(eps) exp(-E(T(eps))) / Z,       eps' ~ p_flow
    w(eps) = exp(-E(T(eps))) N(eps) / p_flow(eps),   accepted with min(1, w(eps') / w)

Independence Metropolis-Hastings: the law is the energy's, and each proposal is a draw
of its own. The mean of w over the flow's draws is Z. Both suppose that the flow's
density is known: it is up to the error of its steps where the trace is exact.
(the energy: arXiv 2306.06323; the flow: arXiv 2210.02747)
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from jebm import importance
from jebm.chains import example_keys
from jebm.priors.base import UNNORMALISED, Prior
from jebm.priors.flow import Flow
from jebm.priors.joint import Joint


@struct.dataclass
class Both:
    """The states of the two."""

    flow: Any
    joint: Any


@dataclasses.dataclass(frozen=True)
class TiltedFlow(Prior):
    """The joint energy's law, drawn by proposals of a flow.

    Attributes:
      flow: what proposes.
      joint: whose law it is.
      num_proposals: of a draw; effort multiplies them.
      num_weights: draws of the flow that `log_z` averages.

    Example:
      >>> import jebm
      >>> frozen = jebm.priors.freeze(*jebm.load_pretrained("digits"))
      >>> eps = frozen.noise(jax.random.key(0), 8)
      >>> prior = TiltedFlow(Flow(width=16, depth=1), Joint(persistent_chains=8))
      >>> state = prior.init(jax.random.key(1), frozen, jebm.priors.Draws(eps))
      >>> prior.log_tilt(frozen, state, eps)[0]  # E = 0 at the start
      Array(0., dtype=float32)
    """

    density: ClassVar[str | None] = UNNORMALISED
    cannot: ClassVar[str] = "correct a flow of many units, whose density is estimated"

    flow: Flow = Flow()
    joint: Joint = Joint()
    num_proposals: int = 16
    num_weights: int = 2000

    def lacks(self, frozen):
        """Says why flow or energy cannot learn on this generator; see `Prior`."""
        if frozen.size > self.flow.exact_below:
            return (
                f"{frozen.size} units are more than the {self.flow.exact_below} up to "
                "which the flow's density is exact: the correction would be biased"
            )
        return self.flow.lacks(frozen) or self.joint.lacks(frozen)

    def init(self, key, frozen, draws):
        """Returns the first states of flow and energy; see `Prior`."""
        key_flow, key_joint = jax.random.split(key)
        return Both(
            self.flow.init(key_flow, frozen, draws),
            self.joint.init(key_joint, frozen, draws),
        )

    def update(self, key, frozen, state, draws):
        """Takes one step of each on the same batch."""
        key_flow, key_joint = jax.random.split(key)
        flow, of_flow = self.flow.update(key_flow, frozen, state.flow, draws)
        joint, of_joint = self.joint.update(key_joint, frozen, state.joint, draws)
        info = {f"flow_{name}": value for name, value in of_flow.items()}
        info |= {f"joint_{name}": value for name, value in of_joint.items()}
        return Both(flow, joint), info

    def sample(self, key, frozen, state, num, effort=1):
        """Draws of the flow, each replaced by better ones of its own proposals."""
        key_flow, key_test = jax.random.split(key)

        def proposed(t):
            eps = self.flow.sample(
                jax.random.fold_in(key_flow, t), frozen, state.flow, num
            )
            return eps, self._log_weights(frozen, state, eps)

        def step(here, t):
            there = proposed(t)
            keys = example_keys(jax.random.fold_in(key_test, t), jnp.arange(num))
            dtype = here[1].dtype
            uniform = jax.vmap(lambda key: jax.random.uniform(key, (), dtype))(keys)
            # A weight that is not a number is of a proposal that is not taken.
            accepted = jnp.log(uniform) < there[1] - here[1]

            def chosen(new, old):
                return jnp.where(accepted.reshape(-1, *[1] * (new.ndim - 1)), new, old)

            return jax.tree.map(chosen, there, here), None

        times = jnp.arange(1, 1 + self.num_proposals * effort)
        return jax.lax.scan(step, proposed(0), times)[0][0]

    def log_tilt(self, frozen, state, eps):
        """Computes -E, [N] in nats."""
        return self.joint.log_tilt(frozen, state.joint, eps)

    def log_z(self, key, frozen, state):
        """Estimates log Z by the mean weight of the flow's draws."""
        eps = self.flow.sample(key, frozen, state.flow, self.num_weights)
        return importance.estimate(self._log_weights(frozen, state, eps))

    def trained(self, state):
        """Leaves out what only learning reads of both."""
        return Both(self.flow.trained(state.flow), self.joint.trained(state.joint))

    def num_parameters(self, state):
        """Counts the parameters of both."""
        flow = self.flow.num_parameters(state.flow)
        return flow + self.joint.num_parameters(state.joint)

    def _log_weights(self, frozen, state, eps):
        """Computes log w; N(eps) is in both tilts."""
        return self.log_tilt(frozen, state, eps) - self.flow.log_tilt(
            frozen, state.flow, eps
        )
