"""Walkers against quadrature, while parameters learn and while they stay."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jebm
from jebm import importance, learning, walkers
from jebm.densities import logdensity
from tests.models import grid_nodes, random_params, small_model

KEY = jax.random.key(0)


def by_quadrature(model, params):
    """log Z of the tilt in eps-space, on the nodes of a grid."""
    eps, _ = grid_nodes(bound=6, num=121)
    plain = dataclasses.replace(model, energy=None)
    tilted = logdensity(model, params, eps, space="eps")
    untilted = logdensity(plain, params, eps, space="eps")
    return jax.nn.logsumexp(tilted) - jax.nn.logsumexp(untilted)


@pytest.fixture(scope="module")
def model():
    return small_model((1, 1), encoder_widths=(4,))


def images(seed, num=50):
    """Of two kinds, so that what an encoder makes of them is far from N(0, I)."""
    rng = np.random.default_rng(seed)
    x = np.where(rng.random((num, 1, 1, 1)) < 0.7, 0.95, 0.05)
    return x.astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("learns", ["energy", "all"])
def test_log_z_stays_that_of_quadrature_through_2000_updates(model, learns):
    chain, options = (
        jebm.MALA(5, 0.8),
        learning.Options(persistent_chains=500, target_acceptance=0.7),
    )
    if learns == "energy":
        learner = jebm.second_stage(model, chain, optax.adam(1e-3), options)
    else:  # the hierarchy moves too, and with it the law of z
        learner = jebm.variational(
            model, chain, optax.adam(3e-3), options, energy_grad_scale=0.5
        )
    state = learner.init(KEY, random_params(model).backbone)
    followers = walkers.start(KEY, model, state.ema, 4000)
    exact_fn = jax.jit(lambda params: by_quadrature(model, params))
    errors, exact = [], []
    for step in range(2000):
        state, _ = learner.update(KEY, state, images(step))
        if step % 20 == 19:
            key = jax.random.fold_in(KEY, step)
            followers = walkers.follow(key, model, state.ema, followers)
            got = walkers.log_z(followers)
            exact.append(float(exact_fn(state.ema)))
            errors.append(float(got.value) - exact[-1])
            assert got.effective_samples > 200, step
    print(np.array(exact).round(2)[::10], np.array(errors).round(3)[::10])
    # 500 effective weights and more: standard errors of less than .045, mostly .02.
    assert np.max(np.abs(errors)) < 0.05
    assert np.sqrt(np.mean(np.square(errors))) < 0.025
    assert max(exact) - min(exact) > 0.3  # there was something to follow


def test_walkers_that_start_anew_find_log_z_however_wrong_the_first_were(model):
    params = random_params(model, seed=3, scale=2.0)
    found = walkers.start(KEY, model, params, 1000)
    for i in range(60):
        key = jax.random.fold_in(KEY, i)
        found = walkers.follow(
            key, model, params, found, num_steps=5, annealing=5, restart_probability=0.1
        )
    got, exact = walkers.log_z(found), by_quadrature(model, params)
    assert abs(exact) > 0.3
    assert got.effective_samples > 200
    assert abs(got.value - exact) < 0.05


def test_first_weights_are_plain_importance_weights(model):
    params = random_params(model, seed=4)
    found = walkers.start(KEY, model, params, 4000)
    latents = jebm.chains.to_latents(model, params, found.eps, "eps")
    energies = jebm.energy(model, params, latents)
    np.testing.assert_allclose(found.log_weight, -energies, atol=1e-5)
    got = walkers.log_z(found)
    assert abs(got.value - by_quadrature(model, params)) < 4 * got.standard_error
    same = importance.estimate(found.log_weight)
    np.testing.assert_allclose(got, same, rtol=2e-3)


def test_walkers_on_their_way_do_not_count():
    log_w = jnp.array([0.3, -jnp.inf, 0.1, -jnp.inf, -0.2])
    got = walkers.of_arrived(log_w)
    expected = importance.estimate(log_w[::2])
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    none = walkers.of_arrived(jnp.full(3, -jnp.inf))
    assert not np.isfinite(none.value)


@pytest.mark.parametrize("annealing", [1, 3, 7])
def test_b_reaches_1_after_the_calls_asked_for(model, annealing):
    params = random_params(model)
    found = walkers.start(KEY, model, params, 4)

    def follow(found, probability):
        return walkers.follow(
            KEY, model, params, found,
            num_steps=1, annealing=annealing, restart_probability=probability,
        )  # fmt: skip

    found = follow(found, 1.0)
    calls = 1
    while (found.inverse_temperature < 1).all():
        found = follow(found, 0.0)
        calls += 1
    assert calls == annealing
    found = follow(found, 0.0)
    np.testing.assert_array_equal(found.inverse_temperature, 1)


def test_step_follows_the_acceptance_and_nothing_is_traced_anew(model):
    params = random_params(model)
    found = walkers.start(KEY, model, params, 500, step_size=0.05)
    for i in range(60):
        found = walkers.follow(jax.random.fold_in(KEY, i), model, params, found)
        if i == 1:
            traced = walkers.move._cache_size()
    assert 0.5 < found.step_size < 3
    assert walkers.move._cache_size() == traced


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, p: walkers.start(KEY, m, p, 0), "num_walkers must be a positive"),
        (
            lambda m, p: walkers.start(
                KEY, dataclasses.replace(m, energy=None), p._replace(energy={}), 3
            ),
            "walkers need a model with an energy",
        ),
        (lambda m, p: walkers.follow(KEY, m, p, p), "walkers must be a Walkers, got"),
        (
            lambda m, p: walkers.follow(
                KEY, m, p, walkers.start(KEY, m, p, 3), annealing=0
            ),
            "annealing must be a positive integer, got 0",
        ),
        (
            lambda m, p: walkers.follow(
                KEY, m, p, walkers.start(KEY, m, p, 3), restart_probability=2
            ),
            r"restart_probability must lie in \[0, 1\], got 2",
        ),
    ],
)
def test_what_cannot_work_is_refused_by_name(model, call, words):
    with pytest.raises(ValueError, match=words):
        call(model, random_params(model))
