"""Metropolis-adjusted underdamped Langevin against equations and quadrature."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jebm
from jebm import langevin, mala, sampling
from jebm.chains import example_keys, run_chains
from jebm.underdamped import (
    acceptance_probability,
    init,
    leapfrog,
    underdamped,
)
from tests.jebm.test_langevin import double_well
from tests.jebm.test_langevin import moments_by_quadrature as moments_of
from tests.jebm.test_sampling import moments_by_quadrature, statistics
from tests.models import random_params, small_model

KEY = jax.random.key(5)


def quartic(z):
    return -jnp.sum(z**4)


def test_step_is_the_stated_equation(x64):
    z, s, friction, temperature = np.array([0.3, -0.8]), 0.4, 0.7, 0.5
    kernel = underdamped(friction)
    state = kernel.init(jnp.asarray(z), quartic)._replace(
        velocity=jnp.array([1.0, 0.5]), moving=jnp.ones(())
    )
    # Towards larger energies; the uniform number of the test is near 0.
    noise = mala.MalaNoise(jnp.array([1.0, 1.0]), jnp.array(-9.0))
    new, info = kernel.move(noise, state, quartic, s, temperature)
    a = np.exp(-friction * s)
    v = a * np.array([1.0, 0.5])
    v += np.sqrt((1 - a**2) * temperature) * np.asarray(noise.proposal)
    half = v + s / 2 * (-4 * z**3)
    there = z + s * half
    end = half + s / 2 * (-4 * there**3)
    log_ratio = -(there**4).sum() + (z**4).sum() - (end @ end - v @ v) / 2
    np.testing.assert_allclose(new.position, there, rtol=1e-12)
    np.testing.assert_allclose(new.velocity, end, rtol=1e-12)
    np.testing.assert_allclose(new.grad, -4 * there**3, rtol=1e-12)
    expected = min(1, np.exp(log_ratio / temperature))
    np.testing.assert_allclose(info.acceptance_rate, expected, rtol=1e-12)
    assert 0 < expected < 1
    # Rejected, the position stays and the velocity, refreshed, turns back.
    noise = noise._replace(acceptance=jnp.array(9.0))
    stayed, _ = kernel.move(noise, state, quartic, s, temperature)
    np.testing.assert_array_equal(stayed.position, z)
    np.testing.assert_allclose(stayed.velocity, -v, rtol=1e-12)


def test_drift_preserves_volume_and_is_reversible(x64):
    def flow(both):
        start = init(both[:2], quartic)._replace(velocity=both[2:])
        end = leapfrog(start, quartic, 0.3)
        return jnp.concatenate([end.position, end.velocity])

    both = jnp.array([0.3, -0.8, 1.0, 0.5])
    np.testing.assert_allclose(jnp.linalg.det(jax.jacobian(flow)(both)), 1, rtol=1e-12)
    turn = jnp.array([1.0, 1.0, -1.0, -1.0])
    np.testing.assert_allclose(turn * flow(turn * flow(both)), both, rtol=1e-12)


def test_ratios_of_a_move_and_of_its_return_are_inverse(x64):
    start = init(jnp.array([0.3, -0.8]), quartic)
    start = start._replace(velocity=jnp.array([1.0, 0.5]))
    end = leapfrog(start, quartic, 0.4)

    def energy(state):
        return 0.5 * state.velocity @ state.velocity - state.logdensity

    there, back = acceptance_probability(start, end), acceptance_probability(end, start)
    assert max(there, back) == 1
    error = abs(energy(end) - energy(start))
    np.testing.assert_allclose(min(there, back), jnp.exp(-error), rtol=1e-12)


def test_at_infinite_friction_it_is_mala(x64):
    start = {"a": jnp.ones((2, 3)), "b": (jnp.zeros(()), jnp.ones(2))}

    def logdensity_fn(z):
        return -sum(jnp.sum((leaf - 1) ** 4) for leaf in jax.tree.leaves(z))

    ends = [
        langevin.run(
            KEY, start, logdensity_fn, num_steps=40, step_size=0.4, kernel=kernel
        )
        for kernel in (underdamped(np.inf), mala.MALA)
    ]
    (ours, info), (theirs, other) = ends
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
        (ours.position, info),
        (theirs.position, other),
    )
    assert 0.3 < info.acceptance_rate < 0.99


def chains_of(logdensity_fn, start, *, friction, **settings):
    """Final states and infos of chains, one for each start."""

    def one(key, z):
        return langevin.run(
            key, z, logdensity_fn, kernel=underdamped(friction), **settings
        )

    return jax.jit(jax.vmap(one))(jax.random.split(KEY, len(start)), start)


@pytest.mark.parametrize("friction", [0.3, 3.0])
def test_moments_of_the_double_well(friction):
    num = 8_000
    state, info = chains_of(
        double_well, jnp.zeros((num, 1)), friction=friction,
        num_steps=400, step_size=0.6,
    )  # fmt: skip
    assert 0.3 < info.acceptance_rate.mean() < 0.97
    z, (m1, m2, _, m4) = np.asarray(state.position), moments_of(double_well)
    assert abs(z.mean() - m1) < 4 * np.sqrt((m2 - m1**2) / num)
    assert abs((z**2).mean() - m2) < 4 * np.sqrt((m4 - m2**2) / num)


def test_exact_draws_stay_exact_draws_where_many_steps_are_rejected():
    """Starts at quantiles of exp(l); position and velocity stay independent."""
    num, line = 20_000, np.linspace(-4, 4, 8001)
    density = np.exp(-2 * (line**2 - 1) ** 2 + 0.5 * line)
    uniform = np.random.default_rng(0).uniform(size=num)
    start = np.interp(uniform, density.cumsum() / density.sum(), line)
    state, info = chains_of(
        double_well, jnp.asarray(start, jnp.float32)[:, None], friction=0.5,
        num_steps=7, step_size=0.8,
    )  # fmt: skip
    assert 0.2 < info.acceptance_rate.mean() < 0.5
    z, v = np.asarray(state.position)[:, 0], np.asarray(state.velocity)[:, 0]
    m1, m2, _, m4 = moments_of(double_well)
    error = np.sqrt(1 / num)
    assert abs(z.mean() - m1) < 4 * error * np.sqrt(m2 - m1**2)
    assert abs((z**2).mean() - m2) < 4 * error * np.sqrt(m4 - m2**2)
    assert abs(v.mean()) < 4 * error
    assert abs(v.var() - 1) < 4 * error * np.sqrt(2)
    assert abs((z * v).mean()) < 4 * error * np.sqrt(m2)
    assert abs((z**2 * v).mean()) < 4 * error * np.sqrt(m4)


def test_temperature_scales_the_law():
    num = 20_000
    state, _ = chains_of(
        lambda z: -0.5 * jnp.sum(z**2), jnp.zeros((num, 1)), friction=1.0,
        num_steps=60, step_size=0.8, temperature=0.25,
    )  # fmt: skip
    assert abs(state.position.var() / 0.25 - 1) < 4 * np.sqrt(2 / num)
    assert abs(state.velocity.var() / 0.25 - 1) < 4 * np.sqrt(2 / num)


def test_what_is_not_finite_is_rejected():
    def walled(z):
        return jnp.where(jnp.all(jnp.abs(z) < 1), -0.5 * jnp.sum(z**2), jnp.nan)

    state, info = chains_of(
        walled, jnp.zeros((500, 2)), friction=1.0, num_steps=100, step_size=0.5
    )
    assert np.all(np.abs(state.position) < 1) and np.isfinite(state.velocity).all()
    assert np.all(info.acceptance_rate < 1)


@pytest.mark.slow
@pytest.mark.parametrize("space", ["eps", "z"])
def test_samples_of_a_model_have_the_moments_of_quadrature(space, x64):
    model = small_model((1, 1))
    params = random_params(model, dtype=jnp.float64, scale=0.7)
    expected, variance = moments_by_quadrature(model, params)
    untilted, _ = moments_by_quadrature(dataclasses.replace(model, energy=None), params)
    num = 8_000
    chain = jebm.Underdamped(100, 0.5, space)
    keys = example_keys(KEY, jnp.arange(num))
    end = jax.jit(lambda keys: run_chains(keys, model, params, chain))(keys)
    assert 0.5 < end.info.acceptance_rate.mean() < 1
    got = statistics(np.concatenate(end.latents, axis=1)).mean(axis=0)
    error = np.sqrt(variance / num)  # chains are independent
    assert np.all(np.abs(got - expected) < 4 * error)
    assert np.any(np.abs(untilted - expected) > 8 * error)  # the energy matters


def test_another_friction_compiles_nothing():
    model = small_model((3, 2), image_shape=(2, 2, 1))
    params = random_params(model)

    def draw(friction):
        chain = jebm.Underdamped(5, 0.3, friction=friction)
        return jebm.sample(KEY, model, params, 2, kernel=chain).x

    first, before = draw(0.5), sampling._sample._cache_size()
    assert not np.array_equal(first, draw(2.0))
    assert sampling._sample._cache_size() == before


@pytest.mark.parametrize(
    ("friction", "words"),
    [
        (0.0, "friction must be positive, got 0.0"),
        (np.inf, "friction must be finite, got inf"),
        ("1", "friction must be a number, got '1'"),
        (np.ones(2), r"friction must be one number, got float64\[2\]"),
    ],
)
def test_wrong_frictions_are_refused(friction, words):
    with pytest.raises(ValueError, match=words):
        jebm.Underdamped(friction=friction)
