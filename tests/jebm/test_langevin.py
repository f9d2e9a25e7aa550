import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jebm
from jebm import langevin, mala, underdamped

UNDERDAMPED = underdamped.underdamped(1.0)


def standard_normal(z):
    return -0.5 * jnp.sum(z**2)


def double_well(z):
    """Wells at -1 and 1 of unequal depth."""
    return jnp.sum(-((z**2 - 1) ** 2) * 2 + 0.5 * z)


def run_many(logdensity_fn, num_chains, *, seed=0, dim=1, **kwargs):
    def one(key):
        return langevin.run(key, jnp.zeros(dim), logdensity_fn, **kwargs)

    keys = jax.random.split(jax.random.key(seed), num_chains)
    state, info = jax.jit(jax.vmap(one))(keys)
    return np.asarray(state.position), info


def test_step_is_the_stated_equation():
    key, z = jax.random.key(0), jnp.array([1.0, -2.0, 0.5])
    state = langevin.init(z, standard_normal)
    (new,), info = langevin.LANGEVIN.step(
        key, state, standard_normal, 0.3, temperature=4.0
    )
    noise = langevin.normal_like(key, z)
    np.testing.assert_allclose(new, z - 0.045 * z + 0.6 * noise, rtol=1e-6)
    np.testing.assert_allclose(info.logdensity, -0.5 * np.sum(np.square(z)), rtol=1e-6)
    np.testing.assert_allclose(info.grad_norm, np.linalg.norm(z), rtol=1e-6)


def test_zero_temperature_is_gradient_ascent():
    z = jnp.array([1.0, -2.0])
    state, _ = langevin.run(
        jax.random.key(0), z, standard_normal,
        num_steps=3, step_size=0.5, temperature=0.0,
    )  # fmt: skip
    np.testing.assert_allclose(state.position, z * (1 - 0.125) ** 3, rtol=1e-6)


@pytest.mark.parametrize("step_size", [0.4, 1.0])
def test_stationary_variance_on_the_standard_normal(step_size):
    num = 20_000
    z, _ = run_many(standard_normal, num, num_steps=200, step_size=step_size)
    expected = 1 / (1 - step_size**2 / 4)
    # Independent chains, Gaussian law: the variance's relative error is sqrt(2 / N).
    assert abs(z.var() / expected - 1) < 4 * np.sqrt(2 / num)
    assert abs(z.mean()) < 4 * np.sqrt(expected / num)


def test_beyond_the_stability_limit_the_chain_diverges():
    z, _ = run_many(standard_normal, 100, num_steps=200, step_size=2.1)
    assert z.var() > 1e6


def test_temperature_scales_the_stationary_variance():
    num = 20_000
    z, _ = run_many(
        standard_normal, num, num_steps=200, step_size=0.4, temperature=0.25
    )
    assert abs(z.var() / (0.25 / 0.96) - 1) < 4 * np.sqrt(2 / num)


def moments_by_quadrature(logdensity_fn):
    line = np.linspace(-4, 4, 4001)
    density = np.exp([float(logdensity_fn(jnp.array([z]))) for z in line])
    density /= density.sum()
    return [np.sum(density * line**p) for p in (1, 2, 3, 4)]


def test_mala_has_the_moments_of_the_double_well():
    num = 8_000
    z, info = run_many(double_well, num, num_steps=500, step_size=0.7, kernel=mala.MALA)
    assert 0.3 < info.acceptance_rate.mean() < 0.9
    m1, m2, _, m4 = moments_by_quadrature(double_well)
    assert abs(z.mean() - m1) < 4 * np.sqrt((m2 - m1**2) / num)
    assert abs((z**2).mean() - m2) < 4 * np.sqrt((m4 - m2**2) / num)
    assert abs((z > 0).mean() - 0.5) > 0.1  # the wells are told apart at all


def test_uncorrected_chain_comes_near_the_double_well_at_a_small_step():
    num = 8_000
    z, _ = run_many(double_well, num, num_steps=2_000, step_size=0.1)
    m1, m2, _, m4 = moments_by_quadrature(double_well)
    # The bias of the uncorrected chain is of first order in step_size^2 = 0.01.
    assert abs(z.mean() - m1) < 0.02 + 4 * np.sqrt((m2 - m1**2) / num)
    assert abs((z**2).mean() - m2) < 0.02 + 4 * np.sqrt((m4 - m2**2) / num)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [langevin.LANGEVIN, mala.MALA, UNDERDAMPED])
def test_run_equals_the_loop_of_steps_and_trajectory_stores_it(kernel):
    key = jax.random.key(3)
    position = {"a": jnp.ones((2, 3)), "b": (jnp.zeros(()), jnp.ones(2))}

    def logdensity_fn(z):
        return -sum(jnp.sum((leaf - 1) ** 4) for leaf in jax.tree.leaves(z))

    options = {"step_size": 0.4, "kernel": kernel}
    state, info = langevin.run(key, position, logdensity_fn, num_steps=6, **options)
    expected, infos, path = kernel.init(position, logdensity_fn), [], [position]
    for t in range(6):
        expected, i = kernel.step(
            jax.random.fold_in(key, t), expected, logdensity_fn, 0.4
        )
        infos.append(i)
        path.append(expected.position)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7),
        state,
        expected,
    )
    np.testing.assert_allclose(
        info.grad_norm, np.mean([i.grad_norm for i in infos]), rtol=1e-4, atol=1e-7
    )
    _, _, stored = langevin.trajectory(
        key, position, logdensity_fn, num_steps=6, every=3, **options
    )
    for leaf, *expected_leaves in zip(
        *map(jax.tree.leaves, [stored, *path[::3]]), strict=True
    ):
        np.testing.assert_allclose(
            leaf, np.stack(expected_leaves), rtol=1e-4, atol=1e-7
        )


def test_trajectory_ends_where_run_ends_to_the_bit():
    key, z = jax.random.key(1), jnp.ones(5)
    state, _ = langevin.run(key, z, double_well, num_steps=12, step_size=0.3)
    _, _, path = langevin.trajectory(
        key, z, double_well, num_steps=12, every=4, step_size=0.3
    )
    np.testing.assert_array_equal(path[-1], state.position)


@pytest.mark.parametrize("num_steps", [0, 1, 4, 5, 7, 23])
def test_a_number_of_steps_may_be_data(num_steps):
    def chain(key, num_steps):
        return langevin.run(
            key, jnp.ones(3), double_well, num_steps=num_steps, step_size=0.3,
            kernel=mala.MALA,
        )  # fmt: skip

    keys = jax.random.split(jax.random.key(4), 6)
    by_data = jax.jit(jax.vmap(chain, (0, None)))(keys, jnp.asarray(num_steps))
    by_number = jax.jit(jax.vmap(lambda key: chain(key, num_steps)))(keys)
    for found, expected in zip(
        *map(jax.tree.leaves, (by_data, by_number)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_zero_steps_return_the_start():
    z = jnp.arange(3.0)
    state, info = langevin.run(
        jax.random.key(0), z, standard_normal, num_steps=0, step_size=0.1
    )
    np.testing.assert_array_equal(state.position, z)
    assert info == (0, 0, 0)


@pytest.mark.parametrize(
    ("kernel", "extra"),
    [(langevin.LANGEVIN, 0), (mala.MALA, 1), (UNDERDAMPED, 1)],
)
def test_number_of_gradients(kernel, extra):
    calls = itertools.count()

    @jax.custom_vjp
    def counted(z):
        return standard_normal(z)

    def backward(z, g):
        jax.debug.callback(lambda: next(calls))
        return (-z * g,)

    counted.defvjp(lambda z: (standard_normal(z), z), backward)
    result = langevin.run(
        jax.random.key(0), jnp.ones(2), counted,
        num_steps=7, step_size=0.1, kernel=kernel,
    )  # fmt: skip
    jax.block_until_ready(result)
    jax.effects_barrier()
    assert next(calls) == 7 + extra


@pytest.mark.parametrize("kernel", [langevin.LANGEVIN, mala.MALA, UNDERDAMPED])
def test_temporary_memory_does_not_grow_with_the_number_of_steps(kernel):
    def temporary_bytes(num_steps):
        def chain(key, z):
            return langevin.run(
                key, z, double_well, num_steps=num_steps, step_size=0.1, kernel=kernel
            )

        keys = jax.random.split(jax.random.key(0), 16)
        compiled = jax.jit(jax.vmap(chain)).lower(keys, jnp.ones((16, 8))).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes(10) == temporary_bytes(1000) > 0


def test_no_key_is_used_twice():
    with jax.debug_key_reuse(True):
        langevin.run(
            jax.random.key(0), (jnp.ones(2), jnp.ones(3)),
            lambda z: standard_normal(z[0]) + standard_normal(z[1]),
            num_steps=3, step_size=0.1,
        )  # fmt: skip


def test_gradient_flows_through_a_chain(x64):
    def end(loc):
        state, _ = langevin.run(
            jax.random.key(0), jnp.zeros(2), lambda z: standard_normal(z - loc),
            num_steps=4, step_size=0.5,
        )  # fmt: skip
        return state.position.sum()

    # z <- (1 - s^2 / 2) z + s^2 / 2 loc: after K steps d z / d loc = 1 - (1 - s^2/2)^K.
    grad = jax.grad(end)(jnp.zeros(2))
    np.testing.assert_allclose(grad, 1 - 0.875**4, rtol=1e-12)


@pytest.mark.parametrize("num_steps", [-1, 2.0, "3"])
def test_num_steps_must_be_a_non_negative_integer(num_steps):
    with pytest.raises(ValueError, match="num_steps must be an integer >= 0, got"):
        langevin.run(
            jax.random.key(0), jnp.ones(1), standard_normal,
            num_steps=num_steps, step_size=0.1,
        )  # fmt: skip


def test_a_chain_is_no_kernel():
    with pytest.raises(ValueError, match=r"got MALA\(.* has one, jebm.MALA\(\)"):
        run_many(double_well, 2, num_steps=3, step_size=0.1, kernel=jebm.MALA())


@pytest.mark.parametrize("every", [0, 3, 11])
def test_every_must_divide_num_steps(every):
    with pytest.raises(ValueError, match=f"got every={every}, num_steps=10"):
        langevin.trajectory(
            jax.random.key(0), jnp.ones(1), standard_normal,
            num_steps=10, every=every, step_size=0.1,
        )  # fmt: skip


def test_mala_rejects_what_is_not_finite():
    def walled(z):
        return jnp.where(jnp.all(jnp.abs(z) < 1), standard_normal(z), jnp.nan)

    z, info = run_many(
        walled, 500, num_steps=100, step_size=1.0, dim=2, kernel=mala.MALA
    )
    assert np.all(np.abs(z) < 1)
    assert np.all(np.isfinite(info.acceptance_rate)) and np.all(
        info.acceptance_rate < 1
    )


def test_mala_at_a_temperature_samples_the_tempered_density():
    num = 20_000
    z, _ = run_many(
        standard_normal, num, num_steps=100, step_size=1.0, temperature=0.25,
        kernel=mala.MALA,
    )  # fmt: skip
    assert abs(z.var() / 0.25 - 1) < 4 * np.sqrt(2 / num)


def test_mala_accepts_tiny_steps_and_rejects_huge_ones():
    _, tiny = run_many(double_well, 50, num_steps=20, step_size=0.01, kernel=mala.MALA)
    _, huge = run_many(double_well, 50, num_steps=20, step_size=20.0, kernel=mala.MALA)
    assert tiny.acceptance_rate.mean() > 0.999 and huge.acceptance_rate.mean() < 0.01


def test_mala_leaves_a_start_outside_the_support():
    def walled(z):
        return jnp.where(jnp.all(jnp.abs(z) < 1), standard_normal(z), -jnp.inf)

    state, _ = langevin.run(
        jax.random.key(0), jnp.array([1.05]), walled,
        num_steps=100, step_size=0.5, kernel=mala.MALA,
    )  # fmt: skip
    assert abs(state.position[0]) < 1


@pytest.mark.parametrize("kernel", [langevin.LANGEVIN, mala.MALA, UNDERDAMPED])
def test_low_precision_positions_keep_their_dtype(kernel):
    with jax.numpy_dtype_promotion("standard"):
        state, _ = langevin.run(
            jax.random.key(0), jnp.ones(3, jnp.bfloat16), standard_normal,
            num_steps=3, step_size=jnp.float32(0.1), kernel=kernel,
        )  # fmt: skip
    assert state.position.dtype == jnp.bfloat16
