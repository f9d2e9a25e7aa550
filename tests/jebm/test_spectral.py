import jax
import jax.numpy as jnp
import numpy as np

from jebm import spectral


def kernels():
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 3, 4, 5), "b": (3, 3, 4, 5), "c": (7, 2), "d": (5, 5, 1, 6)}
    return {name: jnp.asarray(rng.normal(size=s)) for name, s in shapes.items()}


def test_norms_are_the_largest_singular_values(x64):
    given = kernels()
    vectors = spectral.start(jax.random.key(0), given)
    total, vectors = spectral.norms(given, vectors, num_iterations=200)
    expected = sum(
        np.linalg.svd(np.asarray(k).reshape(-1, k.shape[-1]), compute_uv=False)[0]
        for k in given.values()
    )
    np.testing.assert_allclose(total, expected, rtol=1e-10)
    assert {k: v.shape for k, v in vectors.items()} == {
        "36x5": (2, 5), "7x2": (1, 2), "25x6": (1, 6)
    }  # fmt: skip


def test_iteration_goes_on_where_it_was(x64):
    given = kernels()
    vectors = spectral.start(jax.random.key(0), given)
    whole, _ = spectral.norms(given, vectors, num_iterations=6)
    for _ in range(3):
        parts, vectors = spectral.norms(given, vectors, num_iterations=2)
    np.testing.assert_allclose(parts, whole, rtol=1e-12)


def test_gradient_is_the_outer_product_of_singular_vectors(x64):
    matrix = jnp.asarray(np.random.default_rng(1).normal(size=(6, 4)))
    vectors = spectral.start(jax.random.key(0), matrix)
    grad = jax.grad(lambda w: spectral.norms(w, vectors, num_iterations=300)[0])(matrix)
    left, _, right = np.linalg.svd(matrix)
    np.testing.assert_allclose(grad, np.outer(left[:, 0], right[0]), atol=1e-8)
