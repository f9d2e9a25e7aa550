import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jebm
from jebm import langevin, mala, sampling, tempering
from jebm.chains import example_keys, run_chains, trace_chains
from jebm.kernels import Langevin, Tempered
from jebm.mala import MalaState
from tests.jebm.test_sampling import moments_by_quadrature, statistics, with_chains
from tests.models import random_params, small_model

KEY = jax.random.key(3)
WELL, STIFFNESS = 3.0, 10.0  # two wells at -3 and 3, with 90 nats between


def two_wells(eps):
    """log N(eps; 0, I) + g of a 1-D layer: each well has a normal of known moments."""
    return tempering.log_reference(eps) - STIFFNESS * jnp.sum((abs(eps[0]) - WELL) ** 2)


def ends(kernel, num, num_steps=400, start=WELL):
    """Where chains end that all start in one well, [num], and their infos."""

    def chain(key):
        return langevin.run(
            key,
            (jnp.full((1,), start),),
            two_wells,
            num_steps=num_steps,
            step_size=0.2,
            kernel=kernel,
        )

    state, info = jax.jit(jax.vmap(chain))(jax.random.split(KEY, num))
    return np.asarray(state.position[0][:, 0]), info


@pytest.mark.slow
def test_replicas_cross_a_barrier_that_one_chain_does_not():
    num = 2000
    alone, _ = ends(mala.MALA, num)
    assert np.all(alone > 0)
    drawn, info = ends(
        tempering.tempered(tempering.temperature_schedule(4), adjusted=True), num
    )
    # Chains are independent: the count is binomial.
    assert abs((drawn < 0).mean() - 0.5) < 4 * 0.5 / np.sqrt(num)
    # N(eps; 0, 1) exp(-c (|eps| - w)^2), where the other well is out of reach.
    mean, std = 2 * STIFFNESS * WELL / (1 + 2 * STIFFNESS), (1 + 2 * STIFFNESS) ** -0.5
    assert abs(abs(drawn).mean() - mean) < 4 * std / np.sqrt(num)
    assert abs(abs(drawn).std() / std - 1) < 4 / np.sqrt(2 * num)
    assert info.exchange.shape == (num, 3)
    exchange = np.asarray(info.exchange.mean(axis=0))
    assert np.all((exchange > 0.05) & (exchange < 1))
    assert 0.5 < info.acceptance_rate.mean() < 1


@pytest.mark.slow
def test_moves_are_those_of_langevin_where_they_are_not_adjusted():
    """On N(0, 1) an uncorrected step of size s widens the law by a known factor."""
    step_size, num = 1.0, 8000

    def flat(eps):  # g = 0: every exchange is accepted, and every rung has one law
        return tempering.log_reference(eps)

    def chain(key, adjusted):
        state, info = langevin.run(
            key, (jnp.zeros(1),), flat, num_steps=30, step_size=step_size,
            kernel=tempering.tempered(jnp.array([0.0, 1.0]), adjusted),
        )  # fmt: skip
        return state.position[0][0], info

    for adjusted in (False, True):
        drawn, info = jax.jit(jax.vmap(lambda key, a=adjusted: chain(key, a)))(
            jax.random.split(KEY, num)
        )
        np.testing.assert_allclose(info.exchange, 1)
        assert bool(np.all(info.acceptance_rate == 1)) != adjusted
        # A position at b = 1 was drawn anew t steps ago with probability 2^-(t + 1).
        variance, expected = 1.0, 0.0
        for t in range(60):
            expected += 0.5 ** (t + 1) * variance
            if not adjusted:
                variance = (1 - step_size**2 / 2) ** 2 * variance + step_size**2
        assert abs(drawn.var() / expected - 1) < 4 * np.sqrt(2 / num)


@pytest.mark.slow
def test_exchange_keeps_every_replica_and_is_as_probable_as_stated():
    num, trials = 5, 4000
    b = tempering.temperature_schedule(num)
    position = (jnp.linspace(-1.0, 3.0, num)[:, None],)
    replicas = MalaState(position, jax.vmap(two_wells)(position), position)
    keys = jax.random.split(KEY, trials)
    kernel, position_of_one = tempering.tempered(b), (jnp.zeros(1),)

    def exchange(key):
        return tempering._exchange(kernel.draw(key, position_of_one), b, replicas)

    found, probability = jax.vmap(exchange)(keys)
    for leaf, old in zip(
        jax.tree.leaves(found), jax.tree.leaves(replicas), strict=True
    ):
        flat = np.sort(leaf.reshape(trials, num), axis=1)
        np.testing.assert_array_equal(
            flat, np.tile(np.sort(old.reshape(num)), (trials, 1))
        )
    # Position, value and gradient travel together.
    np.testing.assert_array_equal(found.position[0], found.grad[0])
    g = -STIFFNESS * (abs(np.asarray(position[0][:, 0], np.float64)) - WELL) ** 2
    expected = np.minimum(1, np.exp(np.diff(b) * (g[:-1] - g[1:])))
    np.testing.assert_allclose(probability[0], expected, rtol=1e-4, atol=1e-6)
    # Each pair is proposed half the time.
    came, were = (np.asarray(p[0][..., 0]) for p in (found.position, position))
    moved = came[:, 1:] == were[:-1]
    error = np.sqrt(expected / 2 * (1 - expected / 2) / trials)
    assert np.all(abs(moved.mean(axis=0) - expected / 2) <= 4 * error)


@pytest.mark.slow
def test_samples_have_the_moments_of_quadrature(x64):
    model = small_model((1, 1))
    params = random_params(model, dtype=jnp.float64, scale=0.7)
    expected, variance = moments_by_quadrature(model, params)
    num = 8_000
    error = np.sqrt(variance / num)  # chains are independent
    chain = Tempered(60, 0.8, inverse_temperatures=(0.0, 0.25, 1.0), adjusted=True)
    keys = example_keys(KEY, jnp.arange(num))
    latents = jax.jit(lambda keys: run_chains(keys, model, params, chain).latents)(keys)
    untilted = jebm.sample(KEY, model, params, num, prior="gaussian").latents
    drawn, others = (
        statistics(np.concatenate(z, axis=1)).mean(axis=0) for z in (latents, untilted)
    )
    assert np.all(abs(drawn - expected) < 4 * error)
    assert np.any(abs(others - expected) > 8 * error)  # the energy matters


def test_another_temperature_is_refused():
    kernel = tempering.tempered(tempering.temperature_schedule(3))
    with pytest.raises(ValueError, match="temperature must be 1, got 2"):
        langevin.run(
            KEY, (jnp.zeros(1),), two_wells, num_steps=2, step_size=0.1,
            temperature=2.0, kernel=kernel,
        )  # fmt: skip


@pytest.fixture(scope="module")
def model():
    model = small_model((3, 2), image_shape=(2, 2, 1))
    return with_chains(model, Langevin(5, 0.3, space="z"))


@pytest.fixture(scope="module")
def params(model):
    return random_params(model)


@pytest.mark.slow
def test_sampler_is_another_and_its_draws_depend_on_their_own_key(model, params):
    tempered = Tempered(5, 0.3)
    many = jebm.sample(KEY, model, params, 5, kernel=tempered)
    few = jebm.sample(KEY, model, params, 2, kernel=tempered)
    np.testing.assert_allclose(many.x[:2], few.x, rtol=1e-5, atol=1e-6)
    plain = jebm.sample(KEY, model, params, 5)
    assert not np.allclose(many.x, plain.x)
    two = Tempered(5, 0.3, inverse_temperatures=[0.0, 1.0])
    other = jebm.sample(KEY, model, params, 5, kernel=two)
    assert not np.allclose(many.x, other.x)
    above = (many.latents[1],)
    kept = jebm.sample(KEY, model, params, 5, kernel=tempered, above=above)
    np.testing.assert_array_equal(kept.latents[1], above[0])
    exact = [
        jebm.sample(KEY, model, params, 5, prior="gaussian", kernel=kernel)
        for kernel in (None, tempered)
    ]
    np.testing.assert_array_equal(exact[0].x, exact[1].x)


def test_another_schedule_of_the_same_length_compiles_nothing(model, params):
    def draw(b):
        kernel = Tempered(5, 0.3, inverse_temperatures=b)
        return jebm.sample(KEY, model, params, 2, kernel=kernel)

    draw([0.0, 0.5, 1.0])
    before = sampling._sample._cache_size()
    draw([0.0, 0.1, 1.0])
    assert sampling._sample._cache_size() == before


@pytest.mark.slow
def test_what_is_traced_ends_where_the_run_ends(model, params):
    keys = example_keys(KEY, jnp.arange(3))
    chain = Tempered(6, 0.3, inverse_temperatures=tempering.temperature_schedule(3))
    path = trace_chains(keys, model, params, chain, every=2)
    end = run_chains(keys, model, params, chain)
    assert path[0].shape == (4, 3, 3)
    for whole, last in zip(path, end.latents, strict=True):
        np.testing.assert_allclose(whole[-1], last, rtol=1e-5, atol=1e-6)
    assert end.info.exchange.shape == (3, 2)


def test_energy_that_is_infinite_somewhere_is_never_shown():
    def half_line(eps):
        return jnp.where(eps[0][0] > 0, tempering.log_reference(eps), -jnp.inf)

    def chain(key):
        state, _ = langevin.run(
            key, (jnp.full((1,), 1.0),), half_line, num_steps=50, step_size=1.0,
            kernel=tempering.tempered(tempering.temperature_schedule(3), adjusted=True),
        )  # fmt: skip
        return state.position[0][0]

    drawn = jax.jit(jax.vmap(chain))(jax.random.split(KEY, 2000))
    assert np.all(drawn > 0)
    # |N(0, 1)| has mean sqrt(2 / pi) and variance 1 - 2 / pi.
    error = np.sqrt((1 - 2 / np.pi) / 2000)
    assert abs(drawn.mean() - np.sqrt(2 / np.pi)) < 4 * error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"inverse_temperatures": [0.0, 0.7, 0.7, 1.0]},
            r"must rise from 0 to 1, got \[0.0, 0.7, 0.7, 1.0\]",
        ),
        ({"inverse_temperatures": [0.1, 1.0]}, "must rise from 0 to 1"),
        ({"inverse_temperatures": 0.5}, "at least two numbers"),
        ({"inverse_temperatures": [1.0]}, "at least two"),
        ({"space": "z"}, "space 'eps' from start 'normal', got 'z' and 'normal'"),
        ({"start": "encoder"}, "got 'eps' and 'encoder'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, words):
    with pytest.raises(ValueError, match=words):
        Tempered(**arguments)


def test_what_is_no_chain_is_refused_as_a_kernel(model, params):
    with pytest.raises(
        ValueError, match=r"jebm.MALA, jebm.Underdamped or jebm.Tempered"
    ):
        jebm.sample(KEY, model, params, 2, kernel=mala.MALA)


def test_schedule_of_one_temperature_is_refused():
    with pytest.raises(ValueError, match="num_temperatures must be at least 2, got 1"):
        tempering.temperature_schedule(1)
