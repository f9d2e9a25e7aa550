"""Spectral norms of many kernels at once, by power iteration that goes on over steps.

    v = W u / |W u|,     u = W^T v / |W^T v|,     |W| = v^T W u,

of a kernel as the matrix W [inputs, features]. Added to a loss these norms keep the
networks smooth, which deep hierarchies need to be trained. (arXiv 2007.03898)
"""

from typing import Any

import jax
import jax.numpy as jnp

Vectors = dict[str, jax.Array]


def start(key: jax.Array, kernels: Any) -> Vectors:
    """Random vectors u, one per kernel.

    Args:
      key: typed key, [].
      kernels: a pytree of kernels, or of their shapes, each [..., features].

    Returns:
      For each shape of the matrices the vectors of all of that shape, [n, features].
    """
    shapes = jax.eval_shape(_matrices, kernels)
    return {
        name: jax.random.normal(jax.random.fold_in(key, i), (n, features))
        for i, (name, (n, _, features)) in enumerate(
            (name, stack.shape) for name, stack in sorted(shapes.items())
        )
    }


def norms(
    kernels: Any, vectors: Vectors, num_iterations: int = 4
) -> tuple[jax.Array, Vectors]:
    """The sum of all spectral norms, and the vectors to go on from.

    No gradient passes through the vectors.

    Args:
      kernels: a pytree of kernels, each [..., features].
      vectors: of `start`, or of the call before.
      num_iterations: of the power iteration.

    Example:
      >>> kernels = [jnp.diag(jnp.array([1.0, 3.0])), jnp.eye(2)]
      >>> vectors = start(jax.random.key(0), kernels)
      >>> norms(kernels, vectors, num_iterations=20)[0].round(3)
      Array(4., dtype=float32)
    """
    stacks = _matrices(kernels)
    total, found = 0.0, {}
    for name, stack in stacks.items():
        held, u = jax.lax.stop_gradient(stack), vectors[name]
        for _ in range(num_iterations):
            v = _unit(jnp.einsum("nio,no->ni", held, u))
            u = _unit(jnp.einsum("nio,ni->no", held, v))
        total += jnp.einsum("ni,nio,no->", v, stack, u)
        found[name] = u
    return total, found


def _matrices(kernels):
    """Kernels as matrices, those of one shape stacked: {"IxO": [n, I, O]}."""
    stacks = {}
    for kernel in jax.tree.leaves(kernels):
        matrix = kernel.reshape(-1, kernel.shape[-1])
        stacks.setdefault("x".join(map(str, matrix.shape)), []).append(matrix)
    return {name: jnp.stack(stack) for name, stack in stacks.items()}


def _unit(x):
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-12)
