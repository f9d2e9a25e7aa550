"""Kernels that `tools.speed.kernels` holds against those of jebm.

    trajectory         MALT (arXiv 2202.13230): several steps of underdamped Langevin
                       with one Metropolis test; with friction 0 it is HMC
    crank_nicolson     pCNL (arXiv 1202.0709): the Gaussian part moves by its exact
                       Ornstein-Uhlenbeck step, and the test sees the tilt alone
    slice_underdamped  `jebm.underdamped` with a uniform number that moves slowly (arXiv
                       2001.11950), so that rejections come together
    microcanonical     MAMS of BlackJAX (arXiv 2503.01707)

They are for `langevin.run` at temperature 1; pCNL takes log-densities in eps-space.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jebm import mala, underdamped
from jebm.langevin import Kernel, LangevinInfo, global_norm, normal_like
from jebm.underdamped import UnderdampedState


def _plus(tree, scale, other):
    return jax.tree.map(lambda a, b: a + scale * b, tree, other)


def _dot(a, b):
    return sum(jax.tree.leaves(jax.tree.map(lambda a, b: jnp.sum(a * b), a, b)))


def _refreshed(velocity, kept, noise):
    return jax.tree.map(
        lambda v, n: kept * v + jnp.sqrt(1 - kept**2) * n, velocity, noise
    )


def _tested(normal, log_ratio, proposal, state):
    """Accepts by the ratio; returns the state and its info."""
    probability = mala.metropolis(log_ratio, proposal.logdensity)
    info = LangevinInfo(state.logdensity, global_norm(state.grad), probability)
    return mala.accept(normal, probability, proposal, state), info


class TrajectoryNoise(NamedTuple):
    """The random numbers of a trajectory."""

    velocities: Any  # [L, ...] like position
    acceptance: jax.Array


def trajectory(num: int, friction: float = 0.0) -> Kernel:
    """Makes the kernel of trajectories of `num` gradients."""

    def draw(key, position):
        many = jax.tree.map(lambda z: jnp.zeros((num, *z.shape), z.dtype), position)
        return normal_like(key, TrajectoryNoise(many, jnp.zeros(())))

    def move(noise, state, logdensity_fn, step_size, temperature=1.0):
        del temperature

        def one(carry, noise):
            state, gained = carry
            kept = jnp.exp(-friction * step_size) * state.moving
            velocity = _refreshed(state.velocity, kept, noise)
            before = state._replace(velocity=velocity, moving=jnp.ones(()))
            after = underdamped.leapfrog(before, logdensity_fn, step_size)
            gained += 0.5 * (
                _dot(after.velocity, after.velocity) - _dot(velocity, velocity)
            )
            return (after, gained), None

        rest = state._replace(moving=jnp.zeros(()))
        (end, gained), _ = jax.lax.scan(one, (rest, jnp.zeros(())), noise.velocities)
        log_ratio = end.logdensity - state.logdensity - gained
        return _tested(noise.acceptance, log_ratio, end, state)

    return Kernel(underdamped.init, draw, move)


def crank_nicolson() -> Kernel:
    """Makes the kernel of eps' = a eps - (1 - a) grad E + sqrt(1 - a^2) noise."""

    def move(noise, state, logdensity_fn, step_size, temperature=1.0):
        del temperature
        a = jnp.exp(-0.5 * step_size**2)
        slope = _plus(state.grad, 1.0, state.position)  # -grad E
        mean = jax.tree.map(lambda z, g: a * z + (1 - a) * g, state.position, slope)
        there = mala.init(
            _plus(mean, jnp.sqrt(1 - a**2), noise.proposal), logdensity_fn
        )

        def tilt(at):
            return at.logdensity + 0.5 * _dot(at.position, at.position)

        def drift(at, to):  # log of q(to | at) over the same without grad E
            g = _plus(at.grad, 1.0, at.position)
            moved = _plus(to.position, -a, at.position)
            return (_dot(moved, g) - 0.5 * (1 - a) * _dot(g, g)) / (1 + a)

        log_ratio = (
            tilt(there) - tilt(state) + drift(there, state) - drift(state, there)
        )
        return _tested(noise.acceptance, log_ratio, there, state)

    return Kernel(mala.init, mala.draw, move)


class _Sliced(NamedTuple):
    chain: UnderdampedState
    level: jax.Array  # [], uniform on [-1, 1)

    @property
    def position(self):
        return self.chain.position


def slice_underdamped(friction: float, speed: float = 0.05) -> Kernel:
    """Makes the kernel whose uniform number moves by `speed` a step, and returns."""

    def init(position, logdensity_fn):
        return _Sliced(underdamped.init(position, logdensity_fn), jnp.zeros(()))

    def move(noise, state, logdensity_fn, step_size, temperature=1.0):
        del temperature
        chain, uniform = state.chain, jax.scipy.special.ndtr(noise.acceptance)
        level = jnp.where(chain.moving > 0, state.level + speed, 2 * uniform - 1)
        level = jnp.where(level > 1, level - 2, level)
        kept = jnp.exp(-friction * step_size) * chain.moving
        velocity = _refreshed(chain.velocity, kept, noise.proposal)
        chain = chain._replace(velocity=velocity, moving=jnp.ones(()))
        there = underdamped.leapfrog(chain, logdensity_fn, step_size)
        gained = 0.5 * (_dot(there.velocity, there.velocity) - _dot(velocity, velocity))
        ratio = jnp.exp(there.logdensity - chain.logdensity - gained)
        accepted = jnp.abs(level) <= ratio  # False where it is not a number
        turned = chain._replace(velocity=jax.tree.map(jnp.negative, velocity))
        chain = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), there, turned)
        # The height of the slice stays, the density there is `ratio` times as large.
        level = jnp.where(accepted, level / ratio, level)
        probability = jnp.nan_to_num(jnp.minimum(ratio, 1))
        info = LangevinInfo(chain.logdensity, global_norm(chain.grad), probability)
        return _Sliced(chain, level), info

    return Kernel(init, mala.draw, move)


def microcanonical(num: int) -> Kernel:
    """Makes the kernel of BlackJAX's trajectories of `num` gradients."""
    from blackjax.mcmc import adjusted_mclmc, integrators

    verlet = integrators.isokinetic_velocity_verlet
    step = adjusted_mclmc.build_kernel(integrator=verlet)

    def draw(key, position):
        del position
        return jax.random.bits(key, (2,), jnp.uint32)

    def move(noise, state, logdensity_fn, step_size, temperature=1.0):
        del temperature
        key = jax.random.wrap_key_data(noise)
        new, info = step(key, state, logdensity_fn, step_size, (num,))
        norm = global_norm(state.logdensity_grad)
        return new, LangevinInfo(state.logdensity, norm, info.acceptance_rate)

    return Kernel(adjusted_mclmc.init, draw, move)
