import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jebm import spectral


def kernels():
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 3, 4, 5), "b": (3, 3, 4, 5), "c": (7, 2), "d": (5, 5, 1, 6)}
    return {name: jnp.asarray(rng.normal(size=s)) for name, s in shapes.items()}


@pytest.mark.slow
def test_norms_are_the_largest_singular_values(x64):
    given = kernels()
    vectors = spectral.start(jax.random.key(0), given)
    found, vectors = spectral.norms(given, vectors, num_iterations=200)
    assert found.keys() == given.keys()
    for name, kernel in given.items():
        matrix = np.asarray(kernel).reshape(-1, kernel.shape[-1])
        expected = np.linalg.svd(matrix, compute_uv=False)[0]
        np.testing.assert_allclose(found[name], expected, rtol=1e-10)
    assert {k: v.shape for k, v in vectors.items()} == {
        "36x5": (2, 5), "7x2": (1, 2), "25x6": (1, 6)
    }  # fmt: skip


def test_iteration_goes_on_where_it_was(x64):
    given = kernels()
    vectors = spectral.start(jax.random.key(0), given)
    whole, _ = spectral.norms(given, vectors, num_iterations=6)
    for _ in range(3):
        parts, vectors = spectral.norms(given, vectors, num_iterations=2)
    for name in given:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-12)


def test_gradient_is_the_outer_product_of_singular_vectors(x64):
    matrix = jnp.asarray(np.random.default_rng(1).normal(size=(6, 4)))
    vectors = spectral.start(jax.random.key(0), matrix)
    grad = jax.grad(lambda w: spectral.norms(w, vectors, num_iterations=300)[0])(matrix)
    left, _, right = np.linalg.svd(matrix)
    np.testing.assert_allclose(grad, np.outer(left[:, 0], right[0]), atol=1e-8)


def test_kernel_of_zeros_does_not_end_the_search(x64):
    zeros = jnp.zeros((6, 4))
    matrix = jnp.asarray(np.random.default_rng(1).normal(size=(6, 4)))
    norm, vectors = spectral.norms(zeros, spectral.start(jax.random.key(0), zeros))
    assert norm == 0
    norm, _ = spectral.norms(matrix, vectors, num_iterations=300)
    np.testing.assert_allclose(norm, np.linalg.svd(matrix)[1][0], rtol=1e-10)


@pytest.mark.slow
def test_bound_holds_for_every_kernel_and_leaves_the_others(x64):
    params = {"bias": jnp.full(5, 100.0), "small": jnp.eye(3), **kernels()}
    vectors = spectral.start(jax.random.key(0), spectral.kernels_of(params))
    bounded = params
    for _ in range(300):
        bounded, vectors = spectral.bounded(bounded, vectors, 1.5)
    for name, before in params.items():
        after = np.asarray(bounded[name])
        if name in ("bias", "small"):
            np.testing.assert_array_equal(after, before)
            continue
        norms = [
            np.linalg.svd(np.reshape(k, (-1, k.shape[-1])), compute_uv=False)[0]
            for k in (before, after)
        ]
        np.testing.assert_allclose(norms[1], min(norms[0], 1.5), rtol=1e-9)
        np.testing.assert_allclose(after, before * (norms[1] / norms[0]), rtol=1e-9)
