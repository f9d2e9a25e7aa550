"""Tests that fused keys draw the numbers of `jax.random`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jebm.threefry import fused
from tests.precision import enable_x64


def _data(keys):
    return jax.random.key_data(keys)


DRAWS = {
    "normal": lambda key: jax.random.normal(key, (3, 5)),
    "uniform": lambda key: jax.random.uniform(key, (1001,)),
    "bits of 8": lambda key: jax.random.bits(key, (7,), jnp.uint8),
    "bits of 16": lambda key: jax.random.bits(key, (7,), jnp.uint16),
    "permutation": lambda key: jax.random.permutation(key, 20),
    "no numbers": lambda key: jax.random.normal(key, (0, 2)),
    "split": lambda key: _data(jax.random.split(key, (2, 5))),
    "fold_in": lambda key: _data(jax.random.fold_in(key, 12)),
    "fold_in of all bits": lambda key: _data(
        jax.random.fold_in(key, np.uint32(2**32 - 1))
    ),
    "of vmapped keys": lambda key: jax.vmap(
        lambda n: jax.random.normal(jax.random.fold_in(key, n), (4,))
    )(jnp.arange(6)),
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("compile", [lambda draw: draw, jax.jit], ids=["eager", "jit"])
def test_a_fused_key_draws_the_same(name, compile):
    draw, key = compile(DRAWS[name]), jax.random.key(7)
    np.testing.assert_array_equal(draw(fused(key)), draw(key))


def test_float64_is_the_same_too():
    with enable_x64(True):
        key = jax.random.key(1)
        drawn = jax.random.normal(fused(key), (50,), jnp.float64)
        np.testing.assert_array_equal(drawn, jax.random.normal(key, (50,), jnp.float64))


def test_keys_of_any_shape_are_fused():
    keys = jax.random.split(jax.random.key(2), (2, 3))
    assert fused(keys).shape == (2, 3)
    np.testing.assert_array_equal(_data(fused(keys)), _data(keys))
    assert fused(fused(keys)).dtype == fused(keys).dtype


def test_keys_of_another_generator_stay():
    key = jax.random.key(0, impl="rbg")
    assert fused(key).dtype == key.dtype


def test_keys_stay_where_jax_counts_otherwise():
    key = jax.random.key(0)
    with jax.threefry_partitionable(False):
        assert fused(key).dtype == key.dtype


def test_more_numbers_than_counters_raise():
    draw = jax.jit(lambda key: jax.random.bits(fused(key), (2**16, 2**16)))
    with pytest.raises(ValueError, match="fewer than 2"):
        draw.lower(jax.random.key(0))
