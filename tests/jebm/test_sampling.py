import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jebm
from jebm import chains, sampling
from jebm.chains import draw_noise, run_chains, trace_chains
from jebm.densities import logdensity
from jebm.kernels import MALA, Chains, Langevin
from tests.models import grid_nodes, random_params, small_model

KEY = jax.random.key(7)


def with_chains(model, prior=None, posterior=None):
    chains = Chains(prior or model.chains.prior, posterior or model.chains.posterior)
    return dataclasses.replace(model, chains=chains)


@pytest.fixture(scope="module")
def model():
    return with_chains(
        small_model((3, 2), image_shape=(2, 2, 1)), Langevin(5, 0.3), Langevin(5, 0.1)
    )


@pytest.fixture(scope="module")
def params(model):
    return random_params(model)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [(3,), (3, 2), (2, 1, 3)])
@pytest.mark.parametrize("conditioning", ["next", "above"])
@pytest.mark.parametrize("energy", [{}, None])
@pytest.mark.parametrize("space", ["eps", "z", "eps_no_jacobian"])
def test_shapes_and_range_for_one_two_and_three_layers(
    dims, conditioning, energy, space
):
    model = with_chains(
        small_model(dims, conditioning, image_shape=(2, 3, 1), energy=energy),
        Langevin(3, 0.1, space=space),
        Langevin(3, 0.1, space=space),
    )
    params = random_params(model)
    for prior in ("ebm", "gaussian"):
        x, latents = jebm.sample(KEY, model, params, 4, prior=prior)
        assert x.shape == (4, 2, 3, 1) and x.dtype == jnp.float32
        assert np.all((x >= 0) & (x <= 1))
        assert tuple(z.shape for z in latents) == tuple((4, d) for d in dims)
    z = jebm.posterior_sample(KEY, model, params, x)
    assert tuple(z_i.shape for z_i in z) == tuple((4, d) for d in dims)
    assert jebm.reconstruct(KEY, model, params, x).shape == x.shape
    assert jebm.joint_logdensity(model, params, x, z).shape == (4,)


def test_a_draw_depends_on_its_own_key_alone(model, params):
    many = jebm.sample(KEY, model, params, 8)
    few = jebm.sample(KEY, model, params, 3)
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(few), strict=True):
        np.testing.assert_allclose(a[:3], b, rtol=1e-5, atol=1e-6)
    other = jebm.sample(jax.random.key(8), model, params, 3)
    assert np.all(few.latents[0] != other.latents[0])


@pytest.mark.slow
def test_works_inside_the_callers_jit_vmap_and_grad(model, params):
    expected = jebm.sample(KEY, model, params, 3)
    jitted = jax.jit(lambda key, params: jebm.sample(key, model, params, 3))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        jitted(KEY, params),
        expected,
    )
    keys = jnp.stack([KEY, jax.random.key(1)])
    mapped = jax.vmap(lambda key: jebm.sample(key, model, params, 3).x)(keys)
    np.testing.assert_allclose(mapped[0], expected.x, rtol=1e-5, atol=1e-6)

    def brightness(params):
        x = jebm.sample(KEY, model, params, 3).x
        return jebm.reconstruct(KEY, model, params, x).mean()

    grads = jax.jit(jax.grad(brightness))(params)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
    assert any(np.any(g != 0) for g in jax.tree.leaves(grads.energy))


@pytest.mark.slow
def test_gradient_through_sample_matches_finite_differences(x64):
    model = with_chains(small_model((2, 1)), Langevin(4, 0.3))
    params = random_params(model, dtype=jnp.float64)

    def brightness(params):
        return jebm.sample(KEY, model, params, 2).x.sum()

    check_grads(brightness, (params,), order=1, modes=["rev"], rtol=1e-6)


@pytest.mark.parametrize("kernel", [Langevin, MALA])
def test_another_number_of_steps_compiles_nothing(model, params, kernel):
    def draw(num_steps):
        return jebm.sample(KEY, model, params, 4, kernel=kernel(num_steps, 0.3)).latents

    x = jnp.full((4, 2, 2, 1), 0.5)

    def infer(num_steps):
        start = kernel(num_steps, 0.1)
        return jebm.posterior_sample(KEY, model, params, x, kernel=start)

    for function, compiled in (
        (draw, sampling._sample),
        (infer, sampling._posterior_sample),
    ):
        few, before = function(3), compiled._cache_size()
        many = function(8)
        assert compiled._cache_size() == before
        assert not np.allclose(few[0], many[0])
    keys = chains.example_keys(KEY, jnp.arange(4))
    expected = run_chains(keys, model, params, kernel(8, 0.3)).latents
    for found, latent in zip(draw(8), expected, strict=True):
        np.testing.assert_allclose(found, latent, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_each_set_of_static_arguments_is_traced_once(params, model):
    before = sampling._sample._cache_size()
    for seed, step_size, temperature in [(0, 0.1, 1.0), (1, 0.2, 0.7), (2, 0.3, 0.5)]:
        jebm.sample(
            jax.random.key(seed), dataclasses.replace(model), params, 6, num_steps=2,
            step_size=step_size, temperature=temperature,
        )  # fmt: skip
    assert sampling._sample._cache_size() == before + 1
    jebm.sample(KEY, model, params, 7, num_steps=2, step_size=0.1)
    assert sampling._sample._cache_size() == before + 2


@pytest.mark.slow
def test_temporary_memory_is_the_same_for_10_and_1000_steps(model, params):
    def temporary_bytes(num_steps, x):
        def sample(key, params, x):
            if x is None:
                return jebm.sample(key, model, params, 16, num_steps=num_steps)
            return jebm.posterior_sample(key, model, params, x, num_steps=num_steps)

        compiled = jax.jit(sample).lower(KEY, params, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    for x in (None, jnp.full((16, 2, 2, 1), 0.5)):
        assert temporary_bytes(10, x) == temporary_bytes(1000, x) > 0


def test_gaussian_prior_and_zero_energy_are_the_hierarchy_itself(params, model):
    gaussian = jebm.sample(KEY, model, params, 5, prior="gaussian")
    twin = dataclasses.replace(model, energy=None)
    twin_params = jebm.Params(params.backbone, {})
    for prior in ("ebm", "gaussian"):
        samples = jebm.sample(KEY, twin, twin_params, 5, prior=prior)
        jax.tree.map(np.testing.assert_array_equal, samples, gaussian)


def test_temperature_zero_gives_the_mean_of_each_layer_for_both_priors(model, params):
    for prior in ("ebm", "gaussian"):
        x = jebm.sample(KEY, model, params, 4, prior=prior, temperature=0.0).x
        np.testing.assert_allclose(x[1:], jnp.stack([x[0]] * 3), atol=1e-6)


def test_step_size_and_num_steps_default_to_the_models_own(model, params):
    jax.tree.map(
        np.testing.assert_array_equal,
        jebm.sample(KEY, model, params, 4),
        jebm.sample(KEY, model, params, 4, num_steps=5, step_size=0.3),
    )
    x = jnp.full((4, 2, 2, 1), 0.5)
    jax.tree.map(
        np.testing.assert_array_equal,
        jebm.posterior_sample(KEY, model, params, x),
        jebm.posterior_sample(KEY, model, params, x, num_steps=5, step_size=0.1),
    )


@pytest.mark.slow
@pytest.mark.parametrize("space", ["eps", "z"])
def test_trace_chains_begins_at_the_start_and_ends_where_run_chains_ends(
    space, model, params
):
    chain = Langevin(6, 0.2, space=space, start="prior")
    keys = chains.example_keys(KEY, jnp.arange(4))
    end = run_chains(keys, model, params, chain).latents
    fixed = dataclasses.replace(chain, num_steps=0)
    start = run_chains(keys, model, params, fixed).latents
    path = trace_chains(keys, model, params, chain, every=2)
    for p, a, b in zip(path, start, end, strict=True):
        assert p.shape == (4, *a.shape)
        np.testing.assert_allclose(p[0], a, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(p[-1], b, rtol=1e-5, atol=1e-6)


def test_starts_of_a_z_space_chain(model, params):
    keys = chains.example_keys(KEY, jnp.arange(4))
    normal = run_chains(keys, model, params, Langevin(0, 0.1, "z", "normal"))[0]
    prior = run_chains(keys, model, params, Langevin(0, 0.1, "z", "prior"))[0]
    eps = run_chains(keys, model, params, Langevin(0, 0.1, "eps"))[0]
    jax.tree.map(np.testing.assert_array_equal, prior, eps)
    np.testing.assert_allclose(normal[1], prior[1], rtol=1e-6)  # the top is N(0, I)
    assert np.all(normal[0] != prior[0])


@pytest.mark.slow
@pytest.mark.parametrize("space", ["eps", "z"])
@pytest.mark.parametrize("prior", ["ebm", "gaussian"])
def test_layers_above_are_kept_and_those_below_follow_the_conditional(
    space, prior, x64
):
    """Moments of z_1 given z_2 by MALA against quadrature of exp(-E) p(z_1 | z_2)."""
    model = small_model((1, 1))
    params = random_params(model, dtype=jnp.float64)
    if prior == "gaussian":
        model = dataclasses.replace(model, energy=None)
    num, z_2 = 3000, 0.7
    above = (jnp.full((num, 1), z_2),)
    chain = MALA(200, 0.8, space, "prior")
    keys = chains.example_keys(KEY, jnp.arange(num))
    latents = jax.jit(
        lambda keys: run_chains(keys, model, params, chain, above=above).latents
    )(keys)
    np.testing.assert_array_equal(latents[1], above[0])
    line = jnp.linspace(-12, 12, 2001)[:, None]
    log_p = logdensity(
        model, params, (line, jnp.full_like(line, z_2)), space="z"
    )  # of the joint law: z_2 is constant
    weights = np.exp(np.asarray(log_p - log_p.max()))
    weights /= weights.sum()
    for f in (lambda z: z, lambda z: z**2):
        drawn, expected = f(np.asarray(latents[0])[:, 0]), weights @ f(line[:, 0])
        assert abs(drawn.mean() - expected) < 4 * drawn.std() / np.sqrt(num)


def test_sample_keeps_above_for_both_priors_and_refuses_what_does_not_fit(
    model, params
):
    above = (jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32),)
    for prior in ("ebm", "gaussian"):
        x, latents = jebm.sample(KEY, model, params, 4, prior=prior, above=above)
        np.testing.assert_array_equal(latents[1], above[0])
        assert latents[0].shape == (4, 3)
        assert len(np.unique(np.asarray(x), axis=0)) == 4
    for wrong, words in (
        ((above[0][:3],), r"above\[0\] must have shape \(4, 2\), got float32\[3, 2\]"),
        ((above[0], above[0]), "above must be a tuple of at most 1 top layers"),
        (above[0], "above must be a tuple of at most 1 top layers"),
    ):
        with pytest.raises(ValueError, match=words):
            jebm.sample(KEY, model, params, 4, above=wrong)


def moments_by_quadrature(model, params, x=None):
    """Mean and covariance of (z_1, z_2), and the variance of each product's mean."""
    eps, _ = grid_nodes(bound=6, num=161)
    images = None if x is None else jnp.broadcast_to(x, (len(eps[0]), 1, 1, 1))
    log_weights = logdensity(model, params, eps, space="eps", x=images)
    weights = np.asarray(jax.nn.softmax(log_weights))
    z = np.concatenate(chains.to_latents(model, params, eps, "eps"), axis=1)
    stats = statistics(z)
    mean = weights @ stats
    return mean, weights @ (stats - mean) ** 2


def statistics(z):
    return np.stack(
        [z[:, 0], z[:, 1], z[:, 0] ** 2, z[:, 1] ** 2, z[:, 0] * z[:, 1]], axis=1
    )


@pytest.mark.slow
@pytest.mark.parametrize("space", ["eps", "z"])
@pytest.mark.parametrize("with_image", [False, True])
def test_mala_has_the_moments_of_quadrature_in_both_spaces(space, with_image, x64):
    model = small_model((1, 1))
    params = random_params(model, dtype=jnp.float64, scale=0.7)
    x = jnp.full((1, 1, 1, 1), 0.9) if with_image else None
    expected, variance = moments_by_quadrature(model, params, x)
    untilted, _ = moments_by_quadrature(dataclasses.replace(model, energy=None), params)
    num = 8_000
    images = None if x is None else jnp.broadcast_to(x, (num, 1, 1, 1))
    keys = chains.example_keys(KEY, jnp.arange(num))
    end = jax.jit(
        lambda keys, images: run_chains(
            keys, model, params, MALA(300, 0.8, space), x=images
        )
    )(keys, images)
    assert 0.5 < end.info.acceptance_rate.mean() < 1
    got = statistics(np.concatenate(end.latents, axis=1)).mean(axis=0)
    error = np.sqrt(variance / num)  # chains are independent
    assert np.all(np.abs(got - expected) < 4 * error)
    assert np.any(np.abs(untilted - expected) > 8 * error)  # the energy matters


def test_mala_with_zero_energy_samples_the_gaussian_hierarchy():
    model = small_model((1, 1))
    params = random_params(model)
    params = jebm.Params(params.backbone, jebm.init(KEY, model).energy)
    num = 8_000
    keys = chains.example_keys(KEY, jnp.arange(num))
    chain = MALA(300, 0.8, "z", "normal")
    latents = jax.jit(lambda keys: run_chains(keys, model, params, chain).latents)(keys)
    direct = jebm.sample(jax.random.key(1), model, params, num, prior="gaussian")
    a, b = (statistics(np.concatenate(z, axis=1)) for z in (latents, direct.latents))
    error = np.sqrt((a.var(axis=0) + b.var(axis=0)) / num)
    assert np.all(np.abs(a.mean(axis=0) - b.mean(axis=0)) < 4 * error)


IMAGES = np.full((3, 2, 2, 1), 0.5, np.float32)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (IMAGES[0], r"x must have shape \[N, 2, 2, 1\], got float32\[2, 2, 1\]"),
        (np.zeros((3, 2, 2, 3), np.float32), r"x must have shape \[N, 2, 2, 1\]"),
        (IMAGES[:0], "at least one image"),
        ((IMAGES * 255).astype(np.uint8), "floating-point in .0, 1., got uint8"),
        (IMAGES * 3, r"x must lie in \[0, 1\], got values in \[1.5, 1.5\]"),
        (IMAGES - 1, r"x must lie in \[0, 1\], got values in \[-0.5, -0.5\]"),
        (np.where(np.arange(3)[:, None, None, None] == 1, np.nan, IMAGES), "finite"),
        (np.full_like(IMAGES, np.inf), "finite"),
        ("image", "got str"),
    ],
)
def test_images_that_cannot_be_are_refused(x, message, model, params):
    for function in (jebm.posterior_sample, jebm.reconstruct):
        with pytest.raises(ValueError, match=message):
            function(KEY, model, params, x)
    with pytest.raises(ValueError, match=message):
        jebm.joint_logdensity(model, params, x, ())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples must be a positive integer, got 0"),
        ({"num_samples": 2.5}, "num_samples must be a positive integer, got 2.5"),
        ({"prior": "flow"}, r"unknown prior 'flow'; known: \['ebm', 'gaussian'\]"),
        ({"num_steps": -1}, "num_steps must be an integer >= 0, got -1"),
        ({"step_size": -0.1}, "step_size must be positive, got -0.1"),
        ({"step_size": float("nan")}, "step_size must be finite, got nan"),
        ({"step_size": jnp.ones(2)}, r"step_size must be one number, got float32\[2\]"),
        ({"step_size": "a"}, "step_size must be a number, got 'a'"),
        ({"temperature": -1.0}, "temperature must be at least 0, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be finite, got nan"),
        ({"temperature": jnp.ones(2)}, "temperature must be one number"),
        ({"num_steps": True}, "num_steps must be an integer >= 0, got True"),
        ({"key": 0}, "key must be a typed key, as made by jax.random.key, got int"),
        ({"key": jnp.zeros(2, jnp.uint32)}, r"typed key.*got uint32\[2\]"),
        ({"key": jnp.stack([KEY, KEY])}, r"a single key, got keys of shape \(2,\)"),
        ({"params": {}}, "params must be jebm.Params, got dict"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message, model, params):
    arguments = {"key": KEY, "params": params, "num_samples": 2} | arguments
    with pytest.raises(ValueError, match=message):
        jebm.sample(model=model, **arguments)


def test_params_of_another_model_are_refused_by_leaf(model, params):
    other = small_model((3, 4), image_shape=(2, 2, 1))
    with pytest.raises(ValueError, match=r"params do not fit.*should be \(4, 4\)"):
        jebm.sample(KEY, other, params, 2)
    twin = dataclasses.replace(model, energy=None)
    with pytest.raises(ValueError, match=r"energy.*should be absent"):
        jebm.sample(KEY, twin, params, 2)


def test_noise_is_standard_normal_and_each_of_its_key():
    model = small_model()
    params = random_params(model)
    num = 20_000
    keys = jax.random.split(KEY, num)
    noise = jax.jit(draw_noise)(keys, model, params)
    assert [z.shape[1:] for z in noise] == list(model.backbone.latent_shapes)
    flat = np.concatenate([np.asarray(z).reshape(num, -1) for z in noise], axis=1)
    # Independent draws: the errors of mean, variance and correlation, times five.
    covariance = np.cov(flat.T)
    assert (abs(flat.mean(0)) < 5 / np.sqrt(num)).all()
    assert (abs(np.diag(covariance) - 1) < 5 * np.sqrt(2 / num)).all()
    off = covariance - np.diag(np.diag(covariance))
    assert (abs(off) < 5 / np.sqrt(num)).all()
    alone = draw_noise(keys[5:7], model, params)
    for a, z in zip(alone, noise, strict=True):
        np.testing.assert_array_equal(a, z[5:7])
    below = draw_noise(keys[:3], model, params, layers=1)
    assert [z.shape for z in below] == [noise[0][:3].shape]


def test_a_posterior_that_does_not_see_the_image_is_refused(model, params):
    x, key, none = jnp.zeros((2, *model.image_shape)), jax.random.key(0), Langevin(0)
    for draw in (
        lambda: jebm.posterior_sample(key, model, params, x, num_steps=0),
        lambda: jebm.reconstruct(key, model, params, x, kernel=none),
        lambda: jebm.scores.score(key, model, params, x, posterior=none),
    ):
        with pytest.raises(ValueError, match="needs steps of the posterior chain"):
            draw()
