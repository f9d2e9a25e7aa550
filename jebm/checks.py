"""Checks arguments: one ValueError names the argument, what it must be and what it is.

Shapes and dtypes are checked at trace time; values only where they are known. Images
are the only values on a device that are looked at, by one transfer of two numbers.
"""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jebm import model as model_lib
from jebm.kernels import ENCODED, Chain
from jebm.names import unknown_name_message


def key(value) -> None:
    """Demands one typed key."""
    dtype = getattr(value, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise ValueError(
            "key must be a typed key, as made by jax.random.key, "
            f"got {_describe(value)}"
        )
    if value.shape != ():
        raise ValueError(f"key must be a single key, got keys of shape {value.shape}")


def positive_int(name: str, value) -> None:
    """Demands a Python integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")


def integer(name: str, value, least: int = 0) -> None:
    """Demands a Python integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")


def number(name: str, value, most: float = math.inf) -> None:
    """Demands a finite number in [0, most]; a jax.Array is taken on trust."""
    if not 0 <= _number(name, value) <= most:
        due = "be at least 0" if most == math.inf else f"lie in [0, {most}]"
        raise ValueError(f"{name} must {due}, got {value!r}")


def one_of(name: str, value, known) -> None:
    """Demands one of the known values."""
    if value not in known:
        raise ValueError(unknown_name_message(name, value, known))


def _number(name, value):
    if np.shape(value) != ():
        raise ValueError(f"{name} must be one number, got {_describe(value)}")
    if isinstance(value, jax.Array):  # traced, or on a device: taken on trust
        return 1.0
    if isinstance(value, bool):
        raise ValueError(f"{name} must be a number, got {value!r}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number, got {value!r}") from None
    if not np.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def chain(value, default, name: str = "kernel"):
    """Demands a chain of `jebm.kernels`; None becomes `default`."""
    if value is None:
        return default
    if not isinstance(value, Chain):
        raise ValueError(
            f"{name} must be a jebm.Langevin, jebm.MALA, jebm.Underdamped or "
            f"jebm.Tempered, got {value!r}"
        )
    return value


def sees_image(chain: Chain) -> None:
    """Demands of a chain of the posterior that it depends on the image."""
    if not chain.num_steps and chain.start not in ENCODED:
        raise ValueError(
            f"start={chain.start!r} needs steps of the posterior chain to see the "
            "image: pass num_steps or a kernel with steps"
        )


def instance(name: str, value, cls: type) -> None:
    """Demands an object of a class."""
    if not isinstance(value, cls):
        raise ValueError(f"{name} must be a {cls.__name__}, got {_describe(value)}")


def optimizer(value) -> None:
    """Demands a pair of `init` and `update`, as optax has it."""
    if not (hasattr(value, "init") and hasattr(value, "update")):
        raise ValueError(
            f"optimizer must be an optax.GradientTransformation, got {value!r:.60}"
        )


def backbone(model, drawn, value):
    """Demands variables `params.backbone`; returns the Params `drawn` with these."""
    if not isinstance(value, Mapping) or "params" not in value:
        raise ValueError(
            "backbone must be the variables of the backbone, {'params': ...}, as in "
            f"`params.backbone`, got {_describe(value)}"
        )
    replaced = drawn._replace(backbone=value)
    params(model, replaced)
    return replaced


def persistent(num: int, batch_size: int, chains) -> None:
    """Demands the persistent chains that the options ask for, of whole batches."""
    actual = chains[0].shape[0] if chains else 0  # of several devices, the share of one
    if bool(actual) != bool(num) or (actual and num % actual):
        raise ValueError(
            f"state holds {actual} persistent chains, and options.persistent_chains is "
            f"{num}: begin with `init` of this learner"
        )
    if actual % batch_size:
        raise ValueError(
            "persistent_chains must be a multiple of the batch size, got "
            f"{actual} for {batch_size} images"
        )


def index(value, num: int) -> None:
    """Demands the numbers of the examples of a batch, [num] integers."""
    kind: Any = getattr(value, "dtype", object)
    if np.shape(value) != (num,) or not jnp.issubdtype(kind, jnp.integer):
        raise ValueError(f"index must be integers [{num}], got {_describe(value)}")


def position(model, value) -> None:
    """Demands one position, a tuple of [*shape_i] without a batch axis."""
    shapes = tuple(map(tuple, model.backbone.latent_shapes))
    got: Any = _describe(value)
    if isinstance(value, tuple | list):
        got = tuple(getattr(leaf, "shape", None) for leaf in value)
    if got != shapes:
        raise ValueError(
            f"position must be a tuple of one array per layer, of shapes {shapes}, got "
            f"{got}"
        )


def images(model, x) -> None:
    """Demands floating-point images [N, H, W, C] in [0, 1]."""
    shape = getattr(x, "shape", None)
    expected = f"[N, {', '.join(map(str, model.image_shape))}]"
    if shape is None or len(shape) != 4 or shape[1:] != model.image_shape:
        raise ValueError(f"x must have shape {expected}, got {_describe(x)}")
    if shape[0] < 1:
        raise ValueError(f"x must hold at least one image, got shape {shape}")
    _pixels(x)


def image(model, x) -> None:
    """Demands one floating-point image [H, W, C] in [0, 1]."""
    if getattr(x, "shape", None) != model.image_shape:
        shape = list(model.image_shape)
        raise ValueError(f"x must be one image of shape {shape}, got {_describe(x)}")
    _pixels(x)


def floating(name: str, x) -> None:
    """Demands floating-point pixels; their range is not looked at."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"{name} must be floating-point in [0, 1], got {x.dtype}; "
            "divide 8-bit images by 255"
        )


def _pixels(x):
    floating("x", x)
    if isinstance(x, jax.core.Tracer):
        return
    if isinstance(x, jax.Array):
        # Also inside a caller's jit that has closed over it; the one wait for a device.
        with jax.ensure_compile_time_eval():
            low, high = np.asarray(_range(x)).tolist()
    else:
        low, high = np.min(x).item(), np.max(x).item()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("x must be finite, got NaN or infinite pixels")
    if low < 0 or high > 1:
        raise ValueError(f"x must lie in [0, 1], got values in [{low:g}, {high:g}]")


@jax.jit
def _range(x):
    return jnp.stack([jnp.min(x), jnp.max(x)])  # NaN if any value is NaN


def above(model, value, num: int) -> None:
    """Demands the latents [num, *shape_i] of fewer than all layers, the top ones."""
    shapes = model.backbone.latent_shapes
    if not isinstance(value, tuple | list) or len(value) >= len(shapes):
        raise ValueError(
            f"above must be a tuple of at most {len(shapes) - 1} top layers, bottom to "
            f"top, got {_describe(value)}"
        )
    _layers("above", shapes[len(shapes) - len(value) :], value, num)


def latents(model, value, num: int | None = None) -> None:
    """Demands a tuple of [num, *shape_i], bottom to top."""
    shapes = model.backbone.latent_shapes
    if not isinstance(value, tuple | list) or len(value) != len(shapes):
        raise ValueError(
            f"latents must be a tuple of {len(shapes)} layers, bottom to top, "
            f"got {_describe(value)}"
        )
    if num is None:
        num = value[0].shape[0] if getattr(value[0], "ndim", 0) else 0
        num = max(num, 1)  # an empty batch is refused with the shape that is due
    _layers("latents", shapes, value, num)


def _layers(name, shapes, value, num):
    for i, (z, shape) in enumerate(zip(value, shapes, strict=True)):
        if getattr(z, "shape", None) != (num, *shape):
            raise ValueError(
                f"{name}[{i}] must have shape {(num, *shape)}, got {_describe(z)}"
            )
        if not jnp.issubdtype(z.dtype, jnp.floating):
            raise ValueError(f"{name}[{i}] must be floating-point, got {z.dtype}")


def params(model, value) -> None:
    """Demands Params of the tree structure and shapes that `init` makes."""
    if not isinstance(value, model_lib.Params):
        raise ValueError(f"params must be jebm.Params, got {type(value).__name__}")
    expected, got = _expected_shapes(model), _shapes(value)
    for path in sorted(expected.keys() | got.keys()):
        if expected.get(path) != got.get(path):
            raise ValueError(
                f"params do not fit the model: {path} should be "
                f"{expected.get(path, 'absent')}, got {got.get(path, 'nothing')}"
            )


@functools.lru_cache(maxsize=64)
def _expected_shapes(model):
    return _shapes(jax.eval_shape(model_lib.init, jax.random.key(0), model))


def _shapes(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}


def _describe(value) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"{len(value)} of {type(value).__name__}"
    if isinstance(value, Mapping):
        return f"{type(value).__name__} with keys {list(value)}"
    return type(value).__name__
