"""What share of the device's arithmetic a training step uses.

    share = FLOPs of a step * steps a second / (devices * FLOPs a second of a product)

FLOPs are those of XLA's cost analysis of the train step as it is lowered, before a
device's own libraries take products out of its sight. XLA counts the body of a loop
once, whatever its length: here the body of every `scan` is analysed by itself, and
counted as often as it runs. The peak is what one large matrix product reaches on this
device, by the precision that training has and in bfloat16.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

import jebm
from experiments.options import Learning
from experiments.training import learner

_ON_CPU, _ON_ACCELERATOR = 1024, 8192  # sides of the product
_SECONDS = 1.0  # that products are timed for


def step_flops(learning: Learning, model: jebm.Model) -> float:
    """Returns the FLOPs of a training step, of `learning.batch_size` images."""
    rule = learner.create_learner(learning, model)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def create(key):
        backbone = jebm.init(key, model).backbone  # of a first stage, if there is one
        return learner.create_state(key, learning, model, backbone).learner

    state = jax.eval_shape(create, key)
    shape = learning.batch_size, *model.image_shape
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return flops(rule.update, key, state, images)


def flops(function: Callable, *arguments: Any) -> float:
    """Returns the FLOPs of a function, by XLA's cost analysis; nothing is computed.

    The number of turns of a `while` is not known: its body counts once. Of a
    conditional all branches count.

    Args:
      function: of arrays.
      *arguments: arrays, or anything with shape and dtype.

    Example:
      >>> x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
      >>> def ten(x, y):
      ...     return jax.lax.scan(lambda c, _: (c @ y, None), x, length=10)[0]
      >>> flops(ten, x, x) >= 10 * flops(jnp.matmul, x, x) == 10 * 2 * 8**3
      True
    """
    traced = jax.jit(function).trace(*arguments)
    return _analysed(traced) + _repeated(traced.jaxpr)


def _analysed(traced) -> float:
    analysis = traced.lower().cost_analysis() or {}
    return float(analysis.get("flops", 0.0))


def _repeated(jaxpr) -> float:
    """Counts the FLOPs of all turns of a program's scans but the first of each."""
    more = 0.0
    for body, length in _scans(jaxpr):
        inputs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in body.in_avals]
        traced = jax.jit(core.jaxpr_as_fun(body)).trace(*inputs)
        more += (length - 1) * _analysed(traced) + length * _repeated(body)
    return more


def _scans(jaxpr) -> Iterator[tuple[Any, int]]:
    """Yields each scan of a program and its length, except for scans within scans."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if equation.primitive.name == "scan":
            yield equation.params["jaxpr"], equation.params["length"]
            continue
        for below in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        ):
            if hasattr(below, "eqns"):
                yield from _scans(below)


def peak(dtype: Any, side: int | None = None) -> float:
    """Returns the FLOPs a second of a square matrix product on the first device.

    Args:
      dtype: of both factors.
      side: of the matrices; None: one that keeps the kind of device busy.
    """
    if side is None:
        cpu = jax.default_backend() == "cpu"
        side = _ON_CPU if cpu else _ON_ACCELERATOR
    product = jax.jit(jnp.matmul)
    factor = jax.random.normal(jax.random.key(0), (side, side)).astype(dtype)
    product(factor, factor).block_until_ready()  # compiles
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        product(factor, factor).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best
