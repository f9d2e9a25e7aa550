import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jebm
from jebm import annealing, importance, partition, scores
from jebm.chains import run_chains, to_latents
from jebm.densities import logdensity
from jebm.distributions import Normal
from jebm.kernels import ANCESTRAL
from tests.jebm.test_scores import (
    CHAINS,
    NOISE,
    PIXEL,
    SLOPE,
    SPREAD,
    TILT,
    LinearHierarchy,
    Unbounded,
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


@pytest.mark.slow
def test_log_z_is_that_of_quadrature(case):
    model, params, _, exact = case
    assert abs(exact) > 0.1
    found = jebm.partition.log_z(
        KEY, model, params, num_particles=500, num_temperatures=60
    )
    assert found.standard_error < 0.0125  # four of which are the tolerance
    assert abs(found.value - exact) < 0.05
    assert found.effective_samples > 400


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_annealing_from_the_exact_posterior_has_nothing_to_do(x64):
    model, params = linear_model(exact_posterior(TILT), tilted=True)
    log_z, expected = evidence(TILT)
    found = partition.log_likelihood(
        KEY, model, params, images(2), log_z=log_z, start="encoder", num_particles=4,
        num_temperatures=3,
    )  # fmt: skip
    np.testing.assert_allclose(found.value, expected, atol=1e-10)
    np.testing.assert_allclose(found.effective_samples, 4, rtol=1e-10)


@pytest.mark.slow
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
    schedule = annealing.Schedule(jnp.array([0.0, 1.0]), jnp.array([0.5]))
    weights = partition.log_weights(
        keys, model, params, schedule, x=images(400), start="encoder"
    )
    others = scores.importance_log_weights(KEY, model, params, images(1), 400)[0]
    assert stats.ks_2samp(weights, others).pvalue > 1e-3


@pytest.mark.slow
def test_a_gaussian_prior_has_a_log_z_of_zero():
    model = small_model(energy=None)
    params = random_params(model)
    found = partition.log_z(KEY, model, params, num_particles=4, num_temperatures=3)
    assert found.value == 0
    assert found.standard_error == 0


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_weights_of_a_particle_depend_on_its_key_alone():
    model, params = tilted((2, 2), jnp.float32)
    schedule = partition.tune(KEY, model, params, num_temperatures=5)
    keys = jax.random.split(KEY, 6)
    whole = partition.log_weights(keys, model, params, schedule)
    part = partition.log_weights(keys[4:], model, params, schedule)
    np.testing.assert_allclose(whole[4:], part, atol=1e-4)
    joined = importance.estimate(whole)
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


# A well of the energy that makes the tilted prior p_beta + MASS N(CENTRE, WIDTH), both
# unnormalised: Z = 1 + MASS to the digit, and exact samples are those of a mixture.
MASS, CENTRE, WIDTH = np.exp(5.4), (2.5, 2.0), 0.002
LOG_Z = np.log1p(MASS)


def well_init(key, latents):
    del key
    return [jnp.zeros((), z.dtype) for z in latents[:0]]


def well_energy(params, latents):
    """E = -log(1 + MASS N(z; CENTRE, WIDTH) / p_beta(z))."""
    del params

    def log_prob(z, loc, scale):
        return Normal(jnp.broadcast_to(loc, z.shape), jnp.full_like(z, scale)).log_prob(
            z
        )

    low, top = latents
    log_p = log_prob(low, SLOPE * top, SPREAD) + log_prob(top, 0.0, 1.0)
    log_well = log_prob(low, CENTRE[0], WIDTH) + log_prob(top, CENTRE[1], WIDTH)
    return -jax.nn.softplus(np.log(MASS).item() + log_well - log_p)


def well_model():
    energy = jebm.energies.Function(well_init, well_energy)
    backbone = LinearHierarchy(exact_posterior(np.zeros(2)))
    model = jebm.Model((1, 1, 1), backbone, energy, Unbounded(), CHAINS)
    return model, jebm.init(jax.random.key(0), model)


def well_samples(num_inside, num_outside):
    """Exact samples of the well and of p_beta."""
    rng = np.random.default_rng(0)
    inside = CENTRE + WIDTH * rng.normal(size=(num_inside, 2))
    top = rng.normal(size=num_outside)
    low = SLOPE * top + SPREAD * rng.normal(size=num_outside)
    z = np.concatenate([inside, np.stack([low, top], axis=1)])
    return jnp.asarray(z[:, :1]), jnp.asarray(z[:, 1:])


def check_well(latents):
    return partition.check_log_z(
        KEY, *well_model(), latents, num_particles=500, num_temperatures=100
    )


def test_quadrature_finds_the_well_of_the_test(x64):
    line = np.linspace(-8 * WIDTH, 8 * WIDTH, 81)
    points = np.array(list(itertools.product(line, repeat=2))) + CENTRE
    z = tuple(jnp.asarray(points[:, i : i + 1]) for i in range(2))
    values = jebm.prior_logdensity(*well_model(), z)
    found = jax.nn.logsumexp(values) + 2 * np.log(line[1] - line[0])
    assert abs(found - LOG_Z) < 0.01  # all but what lies outside the square, 1 / 222


@pytest.mark.slow
def test_a_check_from_exact_samples_finds_a_well_that_annealing_misses(x64):
    inside = round(2000 * MASS / (1 + MASS))
    found = check_well(well_samples(inside, 2000 - inside))
    # Wrong by nats, and sure of itself.
    assert abs(found.forward.value - LOG_Z) > 5
    assert found.forward.standard_error < 0.01
    assert found.forward.effective_samples > 490
    assert not found.agrees
    # Nine samples outside carry the mean of 1 / w: an error of about a third.
    assert found.reverse.standard_error < 0.5
    assert abs(found.reverse.value - LOG_Z) < 4 * found.reverse.standard_error
    assert found.gap == found.reverse.value - found.forward.value
    assert found.unseen_share == pytest.approx(inside / 2000, abs=1e-3)


@pytest.mark.parametrize(("inside", "outside"), [(300, 0), (3, 297), (1, 299)])
def test_a_check_finds_the_well_whatever_share_of_the_samples_is_in_it(
    inside, outside, x64
):
    found = check_well(well_samples(inside, outside))
    assert not found.agrees
    # On its way back, a sample from outside may fall into the well as well.
    assert inside / 300 - 1e-6 < found.unseen_share < inside / 300 + 0.01
    if outside:  # too few to move the mean: the gap alone would not tell
        assert abs(found.gap) < 0.1
    else:  # nobody gets out, so that log Z is far below
        assert found.gap > 5


def test_a_check_cannot_find_what_neither_side_has_seen(x64):
    found = check_well(well_samples(0, 300))
    assert found.agrees
    assert abs(found.forward.value - LOG_Z) > 5


def tilted_samples(num):
    """Exact samples of the linear Gaussian hierarchy tilted by TILT."""
    root = np.linalg.cholesky(np.linalg.inv(precision(TILT)))
    z = np.random.default_rng(0).normal(size=(num, 2)) @ root.T
    return jnp.asarray(z[:, :1]), jnp.asarray(z[:, 1:])


@pytest.mark.slow
@pytest.mark.parametrize("chain", [None, CHAINS.prior, ANCESTRAL])
def test_a_check_agrees_where_annealing_finds_all_of_a_smooth_prior(chain, x64):
    """Also from samples of p_beta: the first steps backwards move them to the prior."""
    model, params = linear_model(exact_posterior(TILT), tilted=True)
    z = tilted_samples(400)
    if chain is not None:
        keys = jax.random.split(jax.random.key(1), 400)
        z = run_chains(keys, model, params, chain).latents
    found = partition.check_log_z(
        KEY, model, params, z, num_particles=400, num_temperatures=60
    )
    log_z, _ = evidence(TILT)
    assert found.agrees
    assert found.unseen_share == 0
    assert abs(found.gap) < 0.05
    for end in (found.forward, found.reverse):
        assert end.standard_error < 0.01
        assert abs(end.value - log_z) < 4 * end.standard_error
    alone = partition.log_z(KEY, model, params, num_particles=400, num_temperatures=60)
    assert tuple(alone) == tuple(found.forward)


@pytest.mark.slow
def test_a_check_seldom_doubts_what_is_right(x64):
    """The gap's own error tells how far it is from 0, so that 4 of them are rare."""
    model, params = linear_model(exact_posterior(TILT), tilted=True)
    schedule = partition.tune(KEY, model, params, num_temperatures=20)

    @jax.jit
    @jax.vmap
    def check(key, z):
        return partition.check_log_z(
            key, model, params, z, num_particles=100, schedule=schedule
        )

    z = jax.tree.map(lambda z: z.reshape(100, 100, 1), tilted_samples(10_000))
    found = check(jax.random.split(KEY, 100), z)
    assert found.agrees.all()
    errors = found.gap / np.hypot(
        found.forward.standard_error, found.reverse.standard_error
    )
    # Of 100 standard normal values, whose deviation has an error of .07.
    assert np.std(errors) == pytest.approx(1, abs=0.28)
    assert abs(np.mean(errors)) < 0.4
    assert np.abs(errors).max() < 4


@pytest.mark.slow
def test_a_check_is_compiled_and_mapped_as_one_function(x64):
    model, params = linear_model(exact_posterior(TILT), tilted=True)
    schedule = partition.tune(KEY, model, params, num_temperatures=10)

    @jax.jit
    def check(key, params, z):
        return partition.check_log_z(
            key, model, params, z, num_particles=50, schedule=schedule
        )

    z = tilted_samples(50)
    keys = jax.random.split(KEY, 2)
    both = jax.vmap(check, in_axes=(0, None, None))(keys, params, z)
    one = check(keys[1], params, z)
    assert both.agrees.shape == (2,)
    np.testing.assert_allclose(both.gap[1], one.gap, rtol=1e-6)


@pytest.mark.parametrize(
    ("error", "gap", "agrees"),
    [
        (0.001, 0.09, True),  # short chains leave a bias
        (0.001, -0.11, False),
        (0.1, 0.5, True),  # 4 sqrt(2) .1 = .57
        (0.1, 0.6, False),
        (10.0, 0.9, True),
        (10.0, 1.1, False),  # nobody may agree by knowing nothing
        (np.inf, 1.1, False),
        (0.1, np.nan, False),
    ],
)
def test_the_rule_of_agreement(error, gap, agrees):
    end = importance.Estimate(jnp.zeros(()), jnp.asarray(error), jnp.ones(()))
    assert bool(abs(gap) <= partition._tolerance(end, end)) == agrees


def test_k_of_an_encoder_that_is_too_narrow_is_that_of_its_weights(x64):
    """Half as wide in two dimensions, log w is 3/8 of a chi-square of two: k = 3/4."""
    q = exact_posterior(TILT)
    narrow = type(q)(q.top, 0.5 * q.top_scale, q.low, q.pull, 0.5 * q.low_scale)
    model, params = linear_model(narrow, tilted=True)
    log_w = scores.importance_log_weights(KEY, model, params, images(400), 1000)
    log_z, log_p = evidence(TILT)
    above_least = log_w - (log_p + log_z - np.log(4))  # log of 1 / (4 E[w]) at the mode
    assert stats.kstest(above_least[0], stats.expon(scale=0.75).cdf).pvalue > 1e-3
    k = importance.pareto_k(log_w)
    # 94 weights in the tail, k drawn to 1/2 as by ten, a bias of the finite tail.
    expected = (94 * 0.75 + 10 * 0.5) / 104
    assert abs(np.mean(k) - expected) < 4 * np.std(k) / 20 + 0.03
    found = importance.estimate(log_w)
    held = np.abs(found.value - log_z - log_p) < 2 * found.standard_error
    assert 0.5 < np.mean(held) < 0.8  # not .95
    assert np.median(found.effective_samples) > 80


def test_what_cannot_be_estimated_is_refused():
    model, params = tilted((2, 2), jnp.float32)
    z = jebm.sample(KEY, model, params, 3).latents
    with pytest.raises(ValueError, match="num_particles must be a positive integer"):
        partition.log_z(KEY, model, params, num_particles=0)
    with pytest.raises(ValueError, match="num_temperatures must be a positive integer"):
        partition.log_z(KEY, model, params, num_temperatures=2.5)
    schedule = annealing.Schedule(jnp.array([0.0, 1.0]), jnp.array([0.5]))
    both = {"num_temperatures": 5, "schedule": schedule}
    for estimator in (
        partition.log_z,
        functools.partial(partition.log_z_given, above=(z[1],)),
        functools.partial(partition.check_log_z, latents=z),
    ):
        with pytest.raises(ValueError, match="leave out num_temperatures or schedule"):
            estimator(KEY, model, params, **both)
    with pytest.raises(ValueError, match="key must be a typed key"):
        partition.log_z(0, model, params)
    with pytest.raises(ValueError, match="above must hold"):
        partition.log_z_given(KEY, model, params, ())
    with pytest.raises(ValueError, match="above"):
        partition.log_z_given(KEY, model, params, z)
    with pytest.raises(ValueError, match="params must be"):
        partition.log_z_given(KEY, model, None, (z[1],))
    with pytest.raises(ValueError, match="above"):
        partition.tune(KEY, model, params, above=z)
    with pytest.raises(ValueError, match="divide 8-bit images by 255"):
        x = jnp.zeros((2, *model.image_shape), jnp.uint8)
        partition.tune(KEY, model, params, x=x)
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
        partition.reverse_log_z(KEY, model, params, z[:1], schedule)
    with pytest.raises(ValueError, match="latents"):
        partition.check_log_z(KEY, model, params, z[:1])
    with pytest.raises(ValueError, match="num_particles must be a positive integer"):
        partition.check_log_z(KEY, model, params, z, num_particles=0, schedule=schedule)


@pytest.mark.parametrize("start", ["prior", "encoder"])
def test_particles_are_weighted_samples_of_the_posterior(start):
    model = small_model((1, 1), encoder_widths=(4,))
    params = random_params(model)
    plain = dataclasses.replace(model, energy=None)
    untilted = params._replace(energy={})
    x = jnp.full((1, 1, 1, 1), 0.8)
    schedule = partition.tune(
        jax.random.key(0), plain, untilted, x=x, start=start, num_temperatures=40
    )
    num = 4000
    eps, log_w = partition.particles(
        jax.random.split(jax.random.key(1), num), plain, untilted, schedule,
        x=jnp.repeat(x, num, axis=0), start=start,
    )  # fmt: skip
    latents = to_latents(model, params, eps, "eps")
    tilt = -jebm.energy(model, params, latents)
    # log Z p(x) of the tilted prior.
    due = integral(model, params, *grid((1, 1), bound=6, num=121), x=x)
    found = importance.estimate(log_w + tilt)
    assert abs(found.value - due) < 0.02 + 4 * found.standard_error
    assert found.standard_error < 0.1
