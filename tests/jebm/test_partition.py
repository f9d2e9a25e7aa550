import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jebm
from jebm import partition, scores
from jebm.chains import to_latents
from jebm.densities import logdensity
from tests.jebm.test_scores import (
    NOISE,
    PIXEL,
    TILT,
    X,
    exact_posterior,
    images,
    linear_model,
    precision,
)
from tests.models import random_params, small_model

KEY = jax.random.key(0)


def grid(dims, bound, num):
    """Trapezoid nodes on [-bound, bound] per unit, as latents, and their weight."""
    line = np.linspace(-bound, bound, num)
    points = np.array(list(itertools.product(line, repeat=sum(dims))))
    parts = np.split(points, np.cumsum(dims)[:-1], axis=1)
    return tuple(map(jnp.asarray, parts)), (line[1] - line[0]) ** sum(dims)


def integral(model, params, eps, weight, **given):
    """log of the integral of exp(logdensity) over the grid of eps."""
    values = logdensity(model, params, eps, space="eps", **given)
    return float(jax.nn.logsumexp(values)) + np.log(weight)


def tilted(dims, dtype=jnp.float64):
    """A model whose energy is far from 0, so that log Z is."""
    model = small_model(dims)
    return model, random_params(model, dtype=dtype)


CASES = [((1, 1), 7, 141), ((2, 2), 5, 25)]


@pytest.fixture(params=CASES, ids=["1-D", "2-D"])
def case(request, x64):
    dims, bound, num = request.param
    model, params = tilted(dims)
    eps, weight = grid(dims, bound, num)
    return model, params, eps, integral(model, params, eps, weight)


def test_log_z_is_that_of_quadrature(case):
    model, params, _, exact = case
    assert abs(exact) > 0.1
    found = jebm.partition.log_z(
        KEY, model, params, num_particles=500, num_temperatures=60
    )
    assert found.standard_error < 0.0125  # four of which are the tolerance
    assert abs(found.value - exact) < 0.05
    assert found.effective_samples > 400


def test_log_z_backwards_from_exact_samples_is_that_of_quadrature(case):
    model, params, eps, exact = case
    log_p = logdensity(model, params, eps, space="eps")
    # Nodes, moved within their cells: exact up to the grid's spacing.
    index = jax.random.categorical(jax.random.key(1), log_p, shape=(500,))
    spacing = eps[0][-1, -1] - eps[0][-2, -1]
    if spacing == 0:  # the last unit varies fastest, and here it is of another layer
        spacing = eps[-1][-1, -1] - eps[-1][-2, -1]
    keys = jax.random.split(jax.random.key(2), len(eps))
    drawn = tuple(
        e[index] + spacing * (jax.random.uniform(k, (500, e.shape[1]), e.dtype) - 0.5)
        for k, e in zip(keys, eps, strict=True)
    )
    latents = to_latents(model, params, drawn, "eps")
    schedule = partition.tune(KEY, model, params, num_temperatures=60)
    found = partition.reverse_log_z(KEY, model, params, latents, schedule)
    assert found.standard_error < 0.0125
    assert abs(found.value - exact) < 0.05


def test_log_z_of_the_lower_layer_is_that_of_quadrature(x64):
    model, params = tilted((1, 1))
    line, weight = grid((1,), 7, 201)
    above = jnp.array([[-1.5], [0.0], [2.0]])
    expected = [
        integral(model, params, line, weight, above=(jnp.full((201, 1), z),))
        for z in above[:, 0]
    ]
    found = partition.log_z_given(
        KEY, model, params, (above,), num_particles=500, num_temperatures=60
    )
    assert np.ptp(expected) > 0.1
    assert np.all(found.standard_error < 0.0125)
    np.testing.assert_allclose(found.value, expected, atol=0.05)


def evidence(tilt):
    """log Z and log p(x) of the linear Gaussian hierarchy.

    Z is a ratio of normalisers of Gaussians; x is Gaussian under the tilted prior.
    """
    prior, untilted = precision(tilt), precision(np.zeros(2))
    log_z = 0.5 * np.log(np.linalg.det(untilted) / np.linalg.det(prior))
    variance = PIXEL @ np.linalg.inv(prior) @ PIXEL + NOISE**2
    return log_z, -0.5 * (X**2 / variance + np.log(2 * np.pi * variance))


@pytest.mark.parametrize("with_energy", [False, True])
def test_log_likelihood_is_exact_within_its_error(with_energy, x64):
    tilt = TILT if with_energy else np.zeros(2)
    model, params = linear_model(exact_posterior(tilt), tilted=with_energy)
    log_z, expected = evidence(tilt)
    found = partition.log_likelihood(
        KEY, model, params, images(4), log_z=log_z, num_particles=200,
        num_temperatures=80,
    )  # fmt: skip
    error = found.value - expected
    assert np.all(found.standard_error < 0.02)
    assert np.all(np.abs(error) < 4 * found.standard_error + 1e-9)
    z = partition.log_z(KEY, model, params, num_particles=400, num_temperatures=60)
    assert abs(z.value - log_z) < 4 * z.standard_error + 1e-9


def test_annealing_from_the_exact_posterior_has_nothing_to_do(x64):
    model, params = linear_model(exact_posterior(TILT), tilted=True)
    log_z, expected = evidence(TILT)
    found = partition.log_likelihood(
        KEY, model, params, images(2), log_z=log_z, start="encoder", num_particles=4,
        num_temperatures=3,
    )  # fmt: skip
    np.testing.assert_allclose(found.value, expected, atol=1e-10)
    np.testing.assert_allclose(found.effective_samples, 4, rtol=1e-10)


def test_annealing_from_an_encoder_corrects_it(x64):
    q = exact_posterior(TILT)
    wrong = type(q)(0.8 * q.top, 1.3 * q.top_scale, q.low, q.pull, 1.2 * q.low_scale)
    model, params = linear_model(wrong, tilted=True)
    log_z, expected = evidence(TILT)

    def run(num_temperatures):
        return partition.log_likelihood(
            KEY, model, params, images(4), log_z=log_z, start="encoder",
            num_particles=200, num_temperatures=num_temperatures,
        )  # fmt: skip

    bridged, importance = run(40), run(1)
    assert np.all(bridged.standard_error < 0.02)
    error = np.abs(bridged.value - expected)
    assert np.all(error < 4 * bridged.standard_error)
    assert np.all(bridged.standard_error < 0.5 * importance.standard_error)
    # With one temperature it is importance sampling by q: the same law of weights.
    keys = jax.random.split(KEY, 400)
    schedule = partition.Schedule(jnp.array([0.0, 1.0]), jnp.array([0.5]))
    weights = partition.log_weights(
        keys, model, params, schedule, x=images(400), start="encoder"
    )
    others = scores.importance_log_weights(KEY, model, params, images(1), 400)[0]
    assert stats.ks_2samp(weights, others).pvalue > 1e-3


def test_a_gaussian_prior_has_a_log_z_of_zero():
    model = small_model(energy=None)
    params = random_params(model)
    found = partition.log_z(KEY, model, params, num_particles=4, num_temperatures=3)
    assert found.value == 0
    assert found.standard_error == 0


def test_few_temperatures_lie_below_in_the_mean_and_far_off_in_error(x64):
    model, params = tilted((2, 2))
    eps, weight = grid((2, 2), 5, 25)
    exact = integral(model, params, eps, weight)
    keys = jax.random.split(KEY, 20)
    many, few = (
        [
            partition.log_z(k, model, params, num_particles=5, num_temperatures=t)
            for k in keys
        ]
        for t in (40, 1)
    )
    worst = np.std([f.value for f in few])
    assert worst > 2 * np.std([f.value for f in many])
    assert np.mean([f.value for f in few]) < exact


def test_the_schedule_rises_from_0_to_1_with_positive_steps():
    model, params = tilted((2, 2), jnp.float32)
    schedule = partition.tune(KEY, model, params, num_temperatures=20)
    b, step_sizes = schedule
    assert (b[0], b[-1]) == (0, 1)
    assert np.all(np.diff(b) > 0)
    assert step_sizes.shape == (20,)
    assert np.all((step_sizes > 0) & (step_sizes <= 1))


def test_steps_shrink_where_the_likelihood_is_sharp():
    model, params = tilted((2, 2), jnp.float32)
    x = jebm.sample(KEY, model, params, 4).x
    sharp = dataclasses.replace(
        model, likelihood=dataclasses.replace(model.likelihood, scale=0.001)
    )
    wide, narrow = (
        partition.tune(KEY, m, params, x=x, num_temperatures=60) for m in (model, sharp)
    )
    assert narrow.step_sizes[-1] < 0.5 * wide.step_sizes[-1]


def test_weights_of_a_particle_depend_on_its_key_alone():
    model, params = tilted((2, 2), jnp.float32)
    schedule = partition.tune(KEY, model, params, num_temperatures=5)
    keys = jax.random.split(KEY, 6)
    whole = partition.log_weights(keys, model, params, schedule)
    part = partition.log_weights(keys[4:], model, params, schedule)
    np.testing.assert_allclose(whole[4:], part, atol=1e-4)
    joined = partition.estimate(whole)
    assert joined.value == pytest.approx(np.log(np.mean(np.exp(whole))), rel=1e-5)


def test_particles_may_be_sharded_over_devices():
    model, params = tilted((2, 2), jnp.float32)
    schedule = partition.tune(KEY, model, params, num_temperatures=5)
    keys = jax.random.split(KEY, 6)
    mesh = jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(
        keys, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("i"))
    )
    found = partition.log_weights(spread, model, params, schedule)
    assert len(found.sharding.device_set) == 2
    expected = partition.log_weights(keys, model, params, schedule)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_what_cannot_be_estimated_is_refused():
    model, params = tilted((2, 2), jnp.float32)
    z = jebm.sample(KEY, model, params, 3).latents
    with pytest.raises(ValueError, match="num_particles must be a positive integer"):
        partition.log_z(KEY, model, params, num_particles=0)
    with pytest.raises(ValueError, match="num_temperatures must be a positive integer"):
        partition.log_z(KEY, model, params, num_temperatures=2.5)
    with pytest.raises(ValueError, match="key must be a typed key"):
        partition.log_z(0, model, params)
    with pytest.raises(ValueError, match="above must hold"):
        partition.log_z_given(KEY, model, params, ())
    with pytest.raises(ValueError, match="above"):
        partition.log_z_given(KEY, model, params, z)
    with pytest.raises(ValueError, match="x must have shape"):
        partition.log_likelihood(KEY, model, params, jnp.ones((2, 3, 3, 1)), log_z=0.0)
    x = jnp.ones((2, *model.image_shape))
    with pytest.raises(ValueError, match="unknown start 'q'"):
        partition.log_likelihood(KEY, model, params, x, log_z=0.0, start="q")
    with pytest.raises(ValueError, match="and the backbone has no encoder"):
        partition.log_likelihood(KEY, model, params, x, log_z=0.0, start="encoder")
    with pytest.raises(ValueError, match="and there are no images"):
        partition.tune(KEY, model, params, start="encoder")
    with pytest.raises(ValueError, match="latents"):
        schedule = partition.Schedule(jnp.array([0.0, 1.0]), jnp.array([0.5]))
        partition.reverse_log_z(KEY, model, params, z[:1], schedule)
