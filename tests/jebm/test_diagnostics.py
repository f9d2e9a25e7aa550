import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import jebm
from jebm.chains import run_chains, to_eps
from jebm.densities import one_chain
from jebm.diagnostics import chain_diagnostics, largest_curvature
from jebm.distributions import Normal
from tests.models import random_params, small_model


def symmetric(eigenvalues, seed=0):
    """A random symmetric matrix with the given eigenvalues."""
    size = len(eigenvalues)
    basis, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))
    return jnp.asarray(basis * np.asarray(eigenvalues, float) @ basis.T)


def quadratic(hessian):
    """A log-density whose -Hessian is `hessian` everywhere."""
    return lambda z: -0.5 * z @ hessian @ z


@functools.partial(jax.jit, static_argnums=2)
def curvature(key, hessian, num_iterations=10):
    position = jnp.ones(len(hessian), hessian.dtype)
    return largest_curvature(key, position, quadratic(hessian), num_iterations)


SPECTRA = {
    "positive": [0.1, 1, 2, 30],
    "indefinite": [-50, -1, 0.5, 3, 4],
    "negative": [-9, -5, -2, -0.5],
    "one": [7],
    "multiple": [-3, 2, 2, 2],
    "identity": [1, 1, 1, 1, 1],
    "negative and multiple": [-5, -3, -3, -3],
    "of rank one": [0, 0, 0, 5],
    "zero": [0, 0, 0],
    "ten": list(range(-4, 6)),
}


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", SPECTRA)
def test_largest_curvature_is_exact_in_few_dimensions(name, seed, x64):
    hessian = symmetric(SPECTRA[name], seed)
    got = curvature(jax.random.key(seed), hessian)
    np.testing.assert_allclose(got, np.linalg.eigvalsh(hessian)[-1], atol=1e-9)


def test_largest_curvature_in_float32_is_exact_up_to_rounding():
    hessian = symmetric(SPECTRA["indefinite"]).astype(jnp.float32)
    got = curvature(jax.random.key(0), hessian)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, 4, atol=1e-5 * 50)


def test_largest_curvature_rises_to_the_true_value_and_never_above(x64):
    eigenvalues = np.random.default_rng(0).normal(size=12)
    hessian, largest = symmetric(eigenvalues), eigenvalues.max()
    key = jax.random.key(0)
    values = np.array([curvature(key, hessian, k) for k in (1, 2, 4, 8, 12, 13)])
    assert (np.diff(values) > -1e-12).all()  # each space holds the one before
    assert values[0] < values[1] < values[2] < largest
    assert (values < largest + 1e-12).all()
    np.testing.assert_allclose(values[4:], largest, rtol=1e-9)


@pytest.mark.parametrize("tail", [np.linspace(-60, 1, 60), np.full(60, 0.5)])
def test_error_of_largest_curvature_in_many_dimensions_is_that_of_lanczos(tail, x64):
    eigenvalues = np.concatenate([tail, [1.2]])
    keys = jax.random.split(jax.random.key(0), 100)
    values = jax.vmap(curvature, in_axes=(0, None))(keys, symmetric(eigenvalues))
    errors = (1.2 - np.asarray(values)) / (1.2 - eigenvalues.min())
    assert (errors > -1e-12).all()
    # Kuczynski, Wozniakowski (1992): the mean over random starts, k = 10 and D = 61.
    assert errors.mean() < 0.103 * (np.log(61 * 9**4) / 9) ** 2


def test_large_negative_curvature_is_not_mistaken_for_the_largest(x64):
    eigenvalues = np.concatenate([[-1e4], np.linspace(0, 1, 40), [2]])
    got = curvature(jax.random.key(0), symmetric(eigenvalues))
    assert abs(got - 2) < 0.2


def quartic(z):
    a, b = z["a"], z["b"][0]
    return -jnp.sum(a**4) - 3 * jnp.sum(b**2 * a[0]) + jnp.sum(jnp.sin(a)) * b[0, 0]


@pytest.mark.slow
def test_largest_curvature_of_a_pytree_is_that_of_its_hessian(x64):
    position = {"a": jnp.array([0.3, -1.2, 0.7]), "b": (jnp.array([[0.5], [-2.0]]),)}
    flat, unravel = ravel_pytree(position)
    hessian = jax.hessian(lambda z: -quartic(unravel(z)))(flat)
    got = largest_curvature(jax.random.key(0), position, quartic)
    np.testing.assert_allclose(got, np.linalg.eigvalsh(hessian)[-1], rtol=1e-9)


def test_each_position_of_a_batch_has_its_own_largest_curvature(x64):
    positions = jnp.linspace(-2, 2, 7)[:, None]  # one-dimensional
    keys = jax.random.split(jax.random.key(0), 7)
    got = jax.vmap(largest_curvature, in_axes=(0, 0, None))(
        keys, positions, lambda z: -jnp.sum(z**4)
    )
    np.testing.assert_allclose(got, 12 * positions[:, 0] ** 2, rtol=1e-12)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    if request.param == "float64":
        request.getfixturevalue("x64")
    return jnp.dtype(request.param)


KEYS = jax.random.split(jax.random.key(0), 4_000)


def diagnose(model, params, chain, num, x=None):
    return _diagnose(KEYS[:num], model, params, chain, x=x)


_diagnose = jax.jit(chain_diagnostics, static_argnums=3)


@pytest.mark.slow
def test_prior_without_energy_is_as_stiff_as_the_standard_normal(dtype):
    model = small_model((3, 2))
    params = jax.tree.map(
        lambda leaf: leaf.astype(dtype), jebm.init(jax.random.key(0), model)
    )
    health = diagnose(model, params, jebm.Langevin(num_steps=3, step_size=0.4), 5)
    assert health.stiffness.dtype == health.acceptance_rate.dtype == dtype
    np.testing.assert_allclose(health.stiffness, np.full(5, 0.04), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("space", ["eps", "z"])
def test_stiffness_is_that_of_the_hessian_where_the_chain_is(space, given, x64):
    model = small_model((2, 1), conditioning="above")
    params = random_params(model, dtype=jnp.float64)
    x = jnp.linspace(0.1, 0.9, 3).reshape(3, 1, 1, 1) if given else None
    chain = jebm.Langevin(num_steps=0, step_size=0.3, space=space)  # where it starts
    health = diagnose(model, params, chain, 3, x)
    start = run_chains(KEYS[:3], model, params, chain, x=x).latents
    if space == "eps":
        start = to_eps(model, params, start)

    @jax.jit
    def hessian(position, image):
        flat, unravel = ravel_pytree(position)
        density = one_chain(model, params, space, image, 1.0)
        return jax.hessian(lambda z: -density(unravel(z)))(flat)

    for i in range(3):
        position, image = jax.tree.map(lambda leaf, i=i: leaf[i], (start, x))
        largest = np.linalg.eigvalsh(hessian(position, image))[-1]
        assert largest > 0.5
        expected = 0.3**2 / 4 * largest
        np.testing.assert_allclose(health.stiffness[i], expected, rtol=1e-8)


class Linear(nn.Module):
    """One layer of latents, mapped to pixels by a matrix."""

    latent_shapes = ((3,),)

    def setup(self):
        normal = nn.initializers.normal(1.0)
        self.matrix = self.param("matrix", normal, (3, 4), jnp.float32)

    def start(self, batch):
        return jnp.zeros((batch, 0))

    def prior(self, i, state):
        return Normal(*(jnp.full((state.shape[0], 3), value) for value in (0.0, 1.0)))

    def merge(self, i, state, z):
        return z

    def decode(self, state):
        return (state @ self.matrix).reshape(-1, 2, 2, 1)


@dataclasses.dataclass(frozen=True)
class Unbounded:
    """N(x; output, scale)."""

    scale: float

    def num_outputs(self, channels):
        return channels

    def log_prob(self, output, x):
        return Normal(output, jnp.full_like(output, self.scale)).log_prob(x)


@pytest.mark.slow
def test_posterior_of_a_linear_decoder_has_the_stiffness_of_the_closed_form(dtype):
    model = jebm.Model((2, 2, 1), Linear(), None, Unbounded(0.2))
    params = jax.tree.map(
        lambda leaf: leaf.astype(dtype), jebm.init(jax.random.key(0), model)
    )
    matrix = np.asarray(params.backbone["params"]["matrix"], np.float64)
    # log p(eps | x) = -|eps|^2 / 2 - |x - eps W|^2 / 2 sigma^2
    expected = 0.1**2 / 4 * (1 + np.linalg.norm(matrix, 2) ** 2 / 0.2**2)
    chain = jebm.Langevin(num_steps=4, step_size=0.1)
    x = jnp.linspace(0, 1, 20, dtype=dtype).reshape(5, 2, 2, 1)
    health = diagnose(model, params, chain, 5, x)
    rtol = 1e-5 if dtype == jnp.float32 else 1e-9
    np.testing.assert_allclose(health.stiffness, np.full(5, expected), rtol=rtol)


@pytest.mark.parametrize("step_size", [0.8, 1.4])
def test_acceptance_on_the_standard_normal_is_that_of_mala_by_quadrature(step_size):
    model, num = small_model((1,)), 4_000
    params = jebm.init(jax.random.key(0), model)  # E = 0
    chain = jebm.Langevin(num_steps=0, step_size=step_size)  # starts at stationarity
    acceptance = np.asarray(
        diagnose(model, params, chain, num).acceptance_rate, np.float64
    )
    line = np.linspace(-8, 8, 801)
    weights = np.exp(-(line**2) / 2) / np.exp(-(line**2) / 2).sum()
    z, noise = line[:, None], line[None]
    proposal = z - step_size**2 / 2 * z + step_size * noise
    # For N(0, 1) the log-ratio of MALA is s^2 / 8 (z^2 - z'^2).
    accepted = np.exp(np.minimum(step_size**2 / 8 * (z**2 - proposal**2), 0))
    expected = weights @ accepted @ weights
    assert 0.5 < expected < 0.98
    error = acceptance.std() / np.sqrt(num)  # chains are independent
    assert abs(acceptance.mean() - expected) < 4 * error


@pytest.mark.slow
def test_acceptance_is_near_1_for_tiny_steps_and_low_beyond_stability(dtype):
    model = small_model((8, 8))
    params = random_params(model, scale=0.3, dtype=dtype)
    x = jnp.full((20, 1, 1, 1), 0.5, dtype)
    for given in (None, x):
        tiny, huge = (
            diagnose(model, params, jebm.Langevin(5, step_size), 20, given)
            for step_size in (1e-3, 3.0)
        )
        assert tiny.stiffness.max() < 1e-3
        assert tiny.acceptance_rate.min() > 0.99
        assert huge.stiffness.min() > 1
        assert huge.acceptance_rate.mean() < 0.1
