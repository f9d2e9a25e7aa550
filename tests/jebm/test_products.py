"""Products of `compute_dtype`: what is rounded, and what is not."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jebm.convolution import conv, conv_transpose, karatsuba_form, patch_form
from jebm.products import dense, product

DOT = re.compile(r"(?:dot_general|convolution).*: \((.*)\) -> (.*)$")


def products(program):
    """The dtypes of operands and result of each product in a lowered program."""
    found = [DOT.search(line) for line in program.splitlines()]
    return [
        tuple(re.findall(r"x(b?f\d+)>", match[1] + " " + match[2]))
        for match in found
        if match
    ]


def matrices(seed=0):
    rng = np.random.default_rng(seed)
    return (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((64, 32), (32, 48)))


def rounded(x):
    return np.asarray(x.astype(jnp.bfloat16), np.float64)


def test_product_is_that_of_rounded_operands_summed_in_float32():
    x, y = matrices()
    found = product(jax.lax.dot, x, y, "bfloat16")
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, rounded(x) @ rounded(y), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(product(jax.lax.dot, x, y, "float32"), x @ y)


def test_gradients_are_products_of_rounded_operands_summed_in_float32():
    x, y = matrices()
    cotangent = jnp.cos(x @ y)
    _, gradient = jax.vjp(lambda x, y: product(jax.lax.dot, x, y, "bfloat16"), x, y)
    expected = rounded(cotangent) @ rounded(y).T, rounded(x).T @ rounded(cotangent)
    for found, value in zip(gradient(cotangent), expected, strict=True):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-5)


def value(f, compute_dtype, x, y):
    return jnp.sin(0.1 * product(f, x, y, compute_dtype)).sum()


def slope(f, compute_dtype, x, y):
    """A gradient whose gradient is asked for, as of a penalty."""
    return (jax.grad(value, 2)(f, compute_dtype, x, y) ** 2).sum()


def convolution(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


OPERANDS = {
    jax.lax.dot: ((64, 32), (32, 48)),
    convolution: ((3, 8, 8, 4), (4, 4, 4, 5)),
}


@pytest.mark.parametrize("f", OPERANDS)
@pytest.mark.parametrize("function", [value, slope])
def test_gradients_of_any_order_have_rounded_operands_and_are_near(f, function):
    rng = np.random.default_rng(0)
    operands = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in OPERANDS[f]]
    gradient = jax.jit(jax.grad(function, (2, 3)), static_argnums=(0, 1))
    program = gradient.lower(f, "bfloat16", *operands).as_text()
    assert len(products(program)) >= 3
    assert set(products(program)) == {("bf16", "bf16", "f32")}
    exact = gradient(f, "float32", *operands)
    for found, expected in zip(gradient(f, "bfloat16", *operands), exact, strict=True):
        assert found.dtype == jnp.float32
        error = jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)
        assert 1e-4 < error < 1e-2


def test_product_works_under_vmap_and_in_float64(x64):
    x, y = (a.astype(jnp.float64) for a in matrices())
    rows = jax.vmap(lambda row: product(jax.lax.dot, row, y, "bfloat16"))(x)
    assert rows.dtype == jnp.float64
    np.testing.assert_allclose(rows, rounded(x) @ rounded(y), rtol=1e-5, atol=1e-5)


def test_dense_layer_has_the_parameters_of_linen():
    x, _ = matrices()
    params = nn.Dense(5).init(jax.random.key(0), x)
    for compute_dtype, tolerance in (("float32", 0), ("bfloat16", 2e-2)):
        layer = dense(5, compute_dtype)
        assert jax.tree.map(jnp.shape, layer.init(jax.random.key(0), x)) == (
            jax.tree.map(jnp.shape, params)
        )
        found, expected = layer.apply(params, x), nn.Dense(5).apply(params, x)
        np.testing.assert_allclose(found, expected, atol=tolerance)


FORMS = {
    "karatsuba": (karatsuba_form, (3, 4, 4, 8), (4, 4, 6, 8), 2e-2),
    "patch": (lambda x, k, d: patch_form(x, k, 2, d), (3, 5, 4, 8), (4, 4, 6, 8), 1e-2),
    "few": (lambda x, k, d: conv(x, k, 1, d), (3, 4, 4, 64), (3, 3, 64, 3), 1e-2),
    "pixels": (lambda x, k, d: conv(x, k, 1, d), (3, 4, 4, 64), (1, 1, 64, 9), 1e-2),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_a_cpu_have_rounded_operands_both_ways(name):
    form, *shapes, tolerance = FORMS[name]
    rng = np.random.default_rng(0)
    operands = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]

    def loss(compute_dtype, x, kernel):
        return jnp.sin(0.1 * form(x, kernel, compute_dtype)).sum()

    gradient = jax.jit(jax.grad(loss, (1, 2)), static_argnums=0)
    lowered = gradient.trace("bfloat16", *operands).lower(lowering_platforms=("cpu",))
    assert set(products(lowered.as_text())) == {("bf16", "bf16", "f32")}
    exact = gradient("float32", *operands)
    for found, expected in zip(gradient("bfloat16", *operands), exact, strict=True):
        assert found.dtype == jnp.float32
        error = jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)
        assert error < tolerance, error


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("function", [conv, conv_transpose])
def test_other_platforms_run_native_convolutions_of_rounded_operands(
    function, platform
):
    x = jnp.ones((1, 4, 4, 8))
    kernel = jnp.ones((4, 4, 8, 8))

    def loss(x, kernel):
        return (function(x, kernel, 2, "bfloat16") ** 2).sum()

    traced = jax.jit(jax.grad(loss, (0, 1))).trace(x, kernel)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert program.count("stablehlo.convolution") == len(products(program)) == 3
    assert set(products(program)) == {("bf16", "bf16", "f32")}
