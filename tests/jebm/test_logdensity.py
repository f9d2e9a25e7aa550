"""One position to one number, and the samplers of other libraries on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jebm
from jebm.chains import decode, to_latents
from jebm.densities import logdensity
from tests.jebm.test_sampling import moments_by_quadrature, statistics
from tests.models import random_latents, random_params, small_model

KEY = jax.random.key(1)


@pytest.mark.slow
def test_value_and_maps_are_those_of_a_batch_of_one(x64):
    model = small_model((3, 2), image_shape=(2, 2, 1))
    params = random_params(model, dtype=jnp.float64)
    eps = random_latents(model, 4, dtype=jnp.float64)
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(4, 2, 2, 1)))
    prior = jebm.logdensity_fn(model, params)
    expected = logdensity(model, params, eps, space="eps")
    np.testing.assert_allclose(jax.jit(jax.vmap(prior))(eps), expected, rtol=1e-12)
    np.testing.assert_allclose(jax.vmap(prior.potential)(eps), -expected, rtol=1e-12)

    def posterior(x, eps):  # a pytree: images may be mapped over
        return jebm.logdensity_fn(model, params, x)(eps)

    expected = logdensity(model, params, eps, space="eps", x=x)
    np.testing.assert_allclose(jax.vmap(posterior)(x, eps), expected, rtol=1e-12)
    z = to_latents(model, params, eps, "eps")
    for got, want in zip(jax.vmap(prior.latents)(eps), z, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12)
    np.testing.assert_allclose(
        jax.vmap(prior.image)(eps), decode(model, params, z), rtol=1e-12
    )
    start = prior.init(KEY)
    assert [e.shape for e in start] == [(3,), (2,)] and prior.size == 5


def test_one_passes_through_jit_and_vmap_as_a_pytree():
    model = small_model((2, 1))
    seeds = [random_params(model, seed) for seed in range(3)]
    many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
    eps = random_latents(model, 1)
    one = tuple(e[0] for e in eps)
    values = jax.jit(jax.vmap(lambda fn: fn(one)))(jebm.LogDensity(model, many, None))
    expected = [logdensity(model, p, eps, space="eps")[0] for p in seeds]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((1, 2, 2, 1), np.float32), r"one image of shape \[2, 2, 1\], got"),
        (np.zeros((2, 2, 1), np.uint8), "floating-point in .*got uint8"),
        (np.full((2, 2, 1), 1.5, np.float32), r"in \[0, 1\], got values in"),
    ],
)
def test_images_that_do_not_fit_are_refused(x, words):
    model = small_model((2, 1), image_shape=(2, 2, 1))
    with pytest.raises(ValueError, match=words):
        jebm.logdensity_fn(model, random_params(model), x)


@pytest.mark.parametrize(
    ("position", "words"),
    [
        (
            (jnp.zeros(3), jnp.zeros(3)),
            r"\(2,\)\), got \(\(3,\), \(3,\)\)",
        ),
        ((jnp.zeros((4, 3)), jnp.zeros((4, 2))), r"got \(\(4, 3\), \(4, 2\)\)"),
        (jnp.zeros(5), r"position must be a tuple .* got float32\[5\]"),
    ],
)
def test_positions_that_do_not_fit_are_refused(position, words):
    model = small_model((3, 2))
    logdensity = jebm.logdensity_fn(model, random_params(model))
    for call in (logdensity, logdensity.latents, logdensity.image):
        with pytest.raises(ValueError, match=words):
            call(position)


def check_moments(positions, model, params, independent):
    """Means of z against quadrature, by the spread between independent chains."""
    expected, _ = moments_by_quadrature(model, params)
    z = to_latents(model, params, positions, "eps")
    stats = statistics(np.concatenate(z, axis=1)).reshape(independent, -1, 5)
    means = stats.mean(axis=1)
    error = means.std(axis=0, ddof=1) / np.sqrt(independent)
    assert np.all(np.abs(means.mean(axis=0) - expected) < 5 * error)
    assert np.all(error < 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["nuts", "mala"])
def test_blackjax_takes_it_in_one_line(algorithm, x64):
    """Both sample the tilted prior: against quadrature, five standard errors."""
    blackjax = pytest.importorskip("blackjax", reason="BlackJAX: pip install blackjax")
    model = small_model((1, 1))
    params = random_params(model, dtype=jnp.float64, scale=0.7)
    logdensity = jebm.logdensity_fn(model, params)
    sampler = {
        "nuts": lambda: blackjax.nuts(logdensity, 0.5, jnp.ones(logdensity.size)),
        "mala": lambda: blackjax.mala(logdensity, 0.3),
    }[algorithm]()
    num_steps = {"nuts": 60, "mala": 300}[algorithm]

    def chain(key):
        def step(state, key):
            state, _ = sampler.step(key, state)
            return state, state.position

        state = sampler.init(logdensity.init(key))
        keys = jax.random.split(key, num_steps)
        _, path = jax.lax.scan(step, state, keys)
        return jax.tree.map(lambda e: e[num_steps // 3 :], path)

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        path = jax.jit(jax.vmap(chain))(jax.random.split(KEY, 200))
    positions = jax.tree.map(lambda e: e.reshape(-1, e.shape[-1]), path)
    check_moments(positions, model, params, 200)


@pytest.mark.slow
def test_numpyro_takes_its_potential(x64):
    """NUTS of numpyro, its own warm-up: against quadrature, five standard errors."""
    pytest.importorskip("numpyro", reason="numpyro: pip install numpyro")
    from numpyro.infer import MCMC, NUTS

    model = small_model((1, 1))
    params = random_params(model, dtype=jnp.float64, scale=0.7)
    logdensity = jebm.logdensity_fn(model, params)
    num = 20
    starts = jax.vmap(logdensity.init)(jax.random.split(KEY, num))
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        mcmc = MCMC(
            NUTS(potential_fn=logdensity.potential),
            num_warmup=200,
            num_samples=400,
            num_chains=num,
            chain_method="vectorized",
            progress_bar=False,
        )
        mcmc.run(jax.random.PRNGKey(2), init_params=starts)
    positions = jax.tree.map(
        lambda e: jnp.reshape(e, (-1, e.shape[-1])), tuple(mcmc.get_samples())
    )
    check_moments(positions, model, params, num)
