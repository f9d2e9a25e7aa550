"""Spectral norms of many kernels at once, by power iteration that goes on over steps.

    v = W u / |W u|,     u = W^T v / |W^T v|,     |W| = v^T W u,

of a kernel as the matrix W [inputs, features]. Added to a loss these norms keep the
networks smooth, which deep hierarchies need to be trained (arXiv 2007.03898). Bounded,
they keep an energy smooth enough for a chain to follow.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

Vectors = dict[str, jax.Array]


def start(key: jax.Array, kernels: Any) -> Vectors:
    """Draws random vectors u, one per kernel.

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
) -> tuple[Any, Vectors]:
    """Estimates each kernel's spectral norm; returns also the vectors to go on from.

    No gradient passes through the vectors.

    Args:
      kernels: a pytree of kernels, each [..., features].
      vectors: of `start`, or of the call before.
      num_iterations: of the power iteration.

    Returns:
      A pytree like `kernels` of [], and the vectors.

    Example:
      >>> kernels = [jnp.diag(jnp.array([1.0, 3.0])), jnp.eye(2)]
      >>> vectors = start(jax.random.key(0), kernels)
      >>> [round(float(n), 3) for n in norms(kernels, vectors, num_iterations=20)[0]]
      [3.0, 1.0]
    """
    values, updated = {}, {}
    for name, stack in _matrices(kernels).items():
        frozen, u = jax.lax.stop_gradient(stack), vectors[name]
        for _ in range(num_iterations):
            v = _unit(jnp.einsum("nio,no->ni", frozen, u))
            turned = jnp.einsum("nio,ni->no", frozen, v)
            # A kernel of zeros turns everything to zero, and must not end the search.
            u = jnp.where(turned.any(axis=1, keepdims=True), _unit(turned), u)
        values[name] = list(jnp.einsum("ni,nio,no->n", v, stack, u))
        updated[name] = u
    return jax.tree.map(lambda kernel: values[_name(kernel)].pop(0), kernels), updated


def total_norm(params: Any, kernels: Any, vectors: Vectors) -> tuple[Any, Vectors]:
    """Sums the norms of a network's kernels and the largest scale of each of its norms.

    What NVAE penalises. (arXiv 2007.03898)

    Args:
      params: of the network; leaves called "scale" are those of its normalisations.
      kernels: what it has sown.
      vectors: of `start`, or of the call before.

    Returns:
      The sum, [], and the vectors to go on from.
    """
    each, vectors = norms(kernels, vectors)
    leaves = traverse_util.flatten_dict(params)
    scales = [jnp.abs(v).max() for path, v in leaves.items() if path[-1] == "scale"]
    return sum(jax.tree.leaves(each) + scales), vectors


def bounded(
    params: Any, vectors: Vectors, bound: jax.typing.ArrayLike
) -> tuple[Any, Vectors]:
    """Returns `params`, with every kernel above the bound scaled down to it.

    After each step of an optimiser this keeps a network of k kernels, and activations
    of slope 1, from being steeper than bound^k. (arXiv 1804.04368, projection)

    Args:
      params: a pytree; its kernels are the leaves of two and more axes.
      vectors: of `start` or of the call before, for `kernels_of(params)`.
      bound: [], of the spectral norms.

    Example:
      >>> params = {"kernel": jnp.diag(jnp.array([1.0, 4.0])), "bias": jnp.ones(2)}
      >>> vectors = start(jax.random.key(0), kernels_of(params))
      >>> for _ in range(9):
      ...     params, vectors = bounded(params, vectors, 2.0)
      >>> params["kernel"].diagonal().round(3)
      Array([0.5, 2. ], dtype=float32)
    """
    each, vectors = norms(kernels_of(params), vectors)
    scales = (jnp.minimum(1, bound / (norm + 1e-12)) for norm in each)
    scaled = jax.tree.map(lambda a: a * next(scales) if a.ndim >= 2 else a, params)
    return scaled, vectors


def kernels_of(params: Any) -> list[jax.Array]:
    """Returns the leaves of two and more axes."""
    return [leaf for leaf in jax.tree.leaves(params) if leaf.ndim >= 2]


def _matrices(kernels):
    """Reshapes kernels to matrices, those of one shape stacked: {"IxO": [n, I, O]}."""
    stacks = {}
    for kernel in jax.tree.leaves(kernels):
        matrix = kernel.reshape(-1, kernel.shape[-1])
        stacks.setdefault(_name(kernel), []).append(matrix)
    return {name: jnp.stack(stack) for name, stack in stacks.items()}


def _name(kernel):
    return f"{kernel.size // kernel.shape[-1]}x{kernel.shape[-1]}"


def _unit(x):
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-12)
