"""JAX's default random bits, by code that XLA fuses with what uses them.

On a CPU `jax.random` runs the twenty rounds of Threefry as a loop over arrays. Written
out they become part of the loop that reads the bits: the same bits, two to five times
as soon.

Threefry-2x32: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import functools
import math

import jax
import jax.extend.random
import jax.numpy as jnp

_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
_PARITY = 0x1BD11BDA

# Where nothing is traced, one program is run and not one for each operation.
_compiled = functools.partial(jax.jit, inline=True)


@_compiled
def threefry(key: jax.Array, high: jax.Array, low: jax.Array):
    """Encrypts counters by Threefry-2x32 of 20 rounds.

    Args:
      key: uint32 [2].
      high, low: the two words of the counters, uint32 of one shape.

    Returns:
      two words for each counter, uint32 of that shape.
    """
    keys = key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(_PARITY)
    high, low = high + keys[0], low + keys[1]
    for i in range(5):
        for rotation in _ROTATIONS[i % 2]:
            high = high + low
            low = high ^ ((low << rotation) | (low >> (32 - rotation)))
        high = high + keys[(i + 1) % 3]
        low = low + keys[(i + 2) % 3] + jnp.uint32(i + 1)
    return high, low


def fused(key: jax.Array) -> jax.Array:
    """Returns a key that draws the same numbers, faster on a CPU; or `key` itself.

    Args:
      key: typed key of any shape. One of another generator, or all if
        `jax_threefry_partitionable` is off, is returned as it is.

    Example:
      >>> key = jax.random.key(0)
      >>> bool((jax.random.normal(fused(key), 9) == jax.random.normal(key, 9)).all())
      True
    """
    counted = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    if str(jax.random.key_impl(key)) != "threefry2x32" or not counted:
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_FUSED)


def _counted(key, shape):
    """Encrypts the numbers 0, 1, ... in the shape's order."""
    size = math.prod(shape)
    if size >= 2**32:
        raise ValueError(f"a draw must be of fewer than 2**32 numbers, got {shape}")
    low = jax.lax.iota(jnp.uint32, size).reshape(shape)
    return threefry(key, jnp.zeros_like(low), low)


@_compiled
def _seed(seed):
    return jnp.stack([jnp.zeros((), jnp.uint32), seed.astype(jnp.uint32)])


@functools.partial(_compiled, static_argnums=1)
def _split(key, shape):
    return jnp.stack(_counted(key, shape), axis=-1)


@_compiled
def _fold_in(key, data):
    return jnp.stack(threefry(key, *_seed(data)))


@functools.partial(_compiled, static_argnums=(1, 2))
def _random_bits(key, bit_width, shape):
    high, low = _counted(key, shape)
    if bit_width == 64:
        return (high.astype(jnp.uint64) << 32) | low.astype(jnp.uint64)
    return (high ^ low).astype(f"uint{bit_width}")


_FUSED = jax.extend.random.define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="threefry2x32_fused",
    tag="fused",
)
