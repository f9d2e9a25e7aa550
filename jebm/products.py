"""Products of `compute_dtype` operands, with sums and results of float32.

    y = sum_k round(a_k) round(b_k)

where round(.) is that to `compute_dtype`: "bfloat16", or "float32" for none. Gradients
are products as well, of the incoming gradient g,

    grad a_k = sum round(g) round(b_k)

and so are gradients of gradients. Parameters, activations and gradients are float32.

JAX's own gradient of a bfloat16 product has float32 operands, which a CPU is no faster
at. So the rule is written here: the float32 product is transposed by JAX, and what that
makes is evaluated with rounded operands.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core

from jebm.names import unknown_name_message

COMPUTE_DTYPES = ("float32", "bfloat16")


def check_compute_dtype(name: str) -> None:
    """Raises a ValueError naming the known dtypes, unless `name` is one."""
    if name not in COMPUTE_DTYPES:
        raise ValueError(unknown_name_message("compute_dtype", name, COMPUTE_DTYPES))


def product(f: Callable, x: jax.Array, y: jax.Array, compute_dtype: str) -> jax.Array:
    """Computes f(x, y), bilinear, from operands of `compute_dtype`.

    Args:
      f: made of `jax.lax` alone: a product, `dot_general` or `conv_general_dilated`,
        and what rearranges arrays.
      x: first operand.
      y: second operand.
      compute_dtype: one of `COMPUTE_DTYPES`.

    Returns:
      f(x, y), of the dtype of x. It has gradients of any order in reverse mode; in
      "bfloat16" it has none in forward mode (`jax.jvp`).

    Example:
      >>> x = jnp.array([1 + 2**-9, 1.0])  # bfloat16 has 8 bits
      >>> product(jax.lax.dot, x, x, "bfloat16")
      Array(2., dtype=float32)
    """
    return f(x, y) if compute_dtype == "float32" else _rounded(f, compute_dtype, x, y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _rounded(f, dtype, x, y):
    jaxpr = jax.make_jaxpr(f)(x, y)
    return _evaluate(jaxpr, dtype, x, y)


def _rounded_fwd(f, dtype, x, y):
    return _rounded(f, dtype, x, y), (x, y)


def _rounded_bwd(f, dtype, operands, grad):
    x, y = operands
    of_x, of_y = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in operands)

    def grad_x(grad, y):
        return jax.linear_transpose(lambda x: f(x, y), of_x)(grad)[0]

    def grad_y(x, grad):
        return jax.linear_transpose(lambda y: f(x, y), of_y)(grad)[0]

    return _rounded(grad_x, dtype, grad, y), _rounded(grad_y, dtype, x, grad)


_rounded.defvjp(_rounded_fwd, _rounded_bwd)
_PRODUCTS = ("dot_general", "conv_general_dilated")


def _evaluate(jaxpr, dtype, *args):
    """Evaluates a program of one result, with products of operands of `dtype`."""
    values = dict(zip(jaxpr.jaxpr.invars, args, strict=True))
    values |= zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True)

    def read(atom):
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands, params = map(read, equation.invars), equation.params
        if equation.primitive.name in _PRODUCTS:
            operands = (a.astype(dtype) for a in operands)
            params = params | {"preferred_element_type": jnp.dtype("float32")}
        (variable,) = equation.outvars
        values[variable] = equation.primitive.bind(*operands, **params)
    (result,) = map(read, jaxpr.jaxpr.outvars)
    return result.astype(jaxpr.out_avals[0].dtype)


def dense(features: int, compute_dtype: str, **options) -> nn.Dense:
    """Makes a dense layer, a matrix product and a bias, of `compute_dtype`.

    Example:
      >>> layer = dense(5, "bfloat16")
      >>> output, params = layer.init_with_output(jax.random.key(0), jnp.ones((2, 3)))
      >>> output.dtype, params["params"]["kernel"].dtype
      (dtype('float32'), dtype('float32'))
    """

    def dot_general(x, kernel, dimensions, **precision):
        f = functools.partial(
            jax.lax.dot_general, dimension_numbers=dimensions, **precision
        )
        return product(f, x, kernel, compute_dtype)

    return nn.Dense(features, dot_general=dot_general, **options)
