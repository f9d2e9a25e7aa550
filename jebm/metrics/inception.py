"""Inception-v3 as the FID uses it: the network of 2015-12-05, in Linen.

It differs from the published architecture (arXiv 1512.00567) as the frozen graph that
the first FIDs were taken with does, and its translation to PyTorch since: mean pooling
does not count the padding, the last block pools by maxima, and there are 1,008 logits.
Names are those of the tensors in that translation, "Mixed_5b/branch1x1/conv/kernel" for
"Mixed_5b.branch1x1.conv.weight"; `tools.convert.inception` makes the file that `load`
reads. The weights are not shipped with jebm.
"""

import pathlib
import zipfile
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jebm import checks
from jebm.files import cache_directory, written_whole

SIZE = 299  # pixels of the network's images, high and wide
PUBLISHED_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_SHA256 = "sha256"  # entry of the file, beside the arrays


class Activations(NamedTuple):
    """What the metrics take of each image."""

    pool: jax.Array  # [B, 2048], the mean over positions before the last layer
    logits: jax.Array  # [B, 1008]


class Conv(NamedTuple):
    """A convolution with batch normalisation and rectifier."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: str = "SAME"


def _mixed_a(pooled):
    return (
        (Conv("branch1x1", 64),),
        (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
        (
            Conv("branch3x3dbl_1", 64),
            Conv("branch3x3dbl_2", 96, (3, 3)),
            Conv("branch3x3dbl_3", 96, (3, 3)),
        ),
        ("mean", Conv("branch_pool", pooled)),
    )


def _mixed_c(channels):
    return (
        (Conv("branch1x1", 192),),
        (
            Conv("branch7x7_1", channels),
            Conv("branch7x7_2", channels, (1, 7)),
            Conv("branch7x7_3", 192, (7, 1)),
        ),
        (
            Conv("branch7x7dbl_1", channels),
            Conv("branch7x7dbl_2", channels, (7, 1)),
            Conv("branch7x7dbl_3", channels, (1, 7)),
            Conv("branch7x7dbl_4", channels, (7, 1)),
            Conv("branch7x7dbl_5", 192, (1, 7)),
        ),
        ("mean", Conv("branch_pool", 192)),
    )


def _mixed_e(pooling):
    return (
        (Conv("branch1x1", 320),),
        (Conv("branch3x3_1", 384), _fork("branch3x3_2")),
        (
            Conv("branch3x3dbl_1", 448),
            Conv("branch3x3dbl_2", 384, (3, 3)),
            _fork("branch3x3dbl_3"),
        ),
        (pooling, Conv("branch_pool", 192)),
    )


def _fork(name):
    return (Conv(f"{name}a", 384, (1, 3)), Conv(f"{name}b", 384, (3, 1)))


_STEM = (
    Conv("Conv2d_1a_3x3", 32, (3, 3), 2, "VALID"),
    Conv("Conv2d_2a_3x3", 32, (3, 3), padding="VALID"),
    Conv("Conv2d_2b_3x3", 64, (3, 3)),
    "halving",
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, (3, 3), padding="VALID"),
    "halving",
)
# Each block's branches side by side; in a branch, one step after the other: a pooling,
# a convolution, or two of them whose maps are joined.
_BLOCKS = {
    "Mixed_5b": _mixed_a(32),
    "Mixed_5c": _mixed_a(64),
    "Mixed_5d": _mixed_a(64),
    "Mixed_6a": (
        (Conv("branch3x3", 384, (3, 3), 2, "VALID"),),
        (
            Conv("branch3x3dbl_1", 64),
            Conv("branch3x3dbl_2", 96, (3, 3)),
            Conv("branch3x3dbl_3", 96, (3, 3), 2, "VALID"),
        ),
        ("halving",),
    ),
    "Mixed_6b": _mixed_c(128),
    "Mixed_6c": _mixed_c(160),
    "Mixed_6d": _mixed_c(160),
    "Mixed_6e": _mixed_c(192),
    "Mixed_7a": (
        (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, (3, 3), 2, "VALID")),
        (
            Conv("branch7x7x3_1", 192),
            Conv("branch7x7x3_2", 192, (1, 7)),
            Conv("branch7x7x3_3", 192, (7, 1)),
            Conv("branch7x7x3_4", 192, (3, 3), 2, "VALID"),
        ),
        ("halving",),
    ),
    "Mixed_7b": _mixed_e("mean"),
    "Mixed_7c": _mixed_e("max"),
}


def _mean_pool(x):
    """Averages 3 x 3 pixels, those of them within the image."""

    def total(x):
        return nn.pool(x, 0.0, jax.lax.add, (3, 3), (1, 1), "SAME")

    return total(x) / total(jnp.ones_like(x[:1, :, :, :1]))


_POOLINGS = {
    "mean": _mean_pool,
    "max": lambda x: nn.max_pool(x, (3, 3), padding="SAME"),
    "halving": lambda x: nn.max_pool(x, (3, 3), (2, 2)),
}


class _ConvNorm(nn.Module):
    channels: int
    conv: Conv

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(
            self.channels,
            self.conv.kernel,
            self.conv.stride,
            self.conv.padding,
            use_bias=False,
            precision="highest",  # some accelerators would round to 8 bits
            name="conv",
        )(x)
        norm = nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")
        return nn.relu(norm(x))


def _steps(x, steps, reduction):
    """Takes the steps of a branch, inside of a compact module."""
    for step in steps:
        if isinstance(step, str):
            x = _POOLINGS[step](x)
        elif isinstance(step, Conv):
            x = _ConvNorm(step.channels // reduction, step, name=step.name)(x)
        else:
            parts = [_steps(x, (conv,), reduction) for conv in step]
            x = jnp.concatenate(parts, axis=-1)
    return x


class _Mixed(nn.Module):
    reduction: int
    branches: tuple[tuple[Any, ...], ...]

    @nn.compact
    def __call__(self, x):
        parts = [_steps(x, branch, self.reduction) for branch in self.branches]
        return jnp.concatenate(parts, axis=-1)


class InceptionV3(nn.Module):
    """The network, from images of 299 x 299 pixels to activations.

    Attributes:
      reduction: divides the numbers of channels and of logits, a divisor of 16: for
        tests. That of published numbers is 1.

    Example:
      >>> network = InceptionV3(reduction=16)
      >>> images = jnp.zeros((2, 299, 299, 3))
      >>> variables = jax.eval_shape(network.init, jax.random.key(0), images)
      >>> activations = jax.eval_shape(network.apply, variables, images)
      >>> activations.pool.shape, activations.logits.shape
      ((2, 128), (2, 63))
    """

    reduction: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> Activations:
        """Maps images [B, 299, 299, 3] in [-1, 1] to activations."""
        x = _steps(x, _STEM, self.reduction)
        for name, branches in _BLOCKS.items():
            x = _Mixed(self.reduction, branches, name=name)(x)
        pool = x.mean((1, 2))
        last = nn.Dense(1008 // self.reduction, precision="highest", name="fc")
        return Activations(pool, last(pool))


def quantise(images: jax.Array) -> jax.Array:
    """Rounds images in [0, 1] to the 256 values that a file of 8 bits holds.

    Example:
      >>> jnp.round(quantise(jnp.array([0.0, 0.001, 0.002, 1.0])) * 255)
      Array([  0.,   0.,   1., 255.], dtype=float32)
    """
    return jnp.floor(images * 255 + 0.5) / 255


def prepare(images: jax.Array, resize: str) -> jax.Array:
    """Makes images what the network takes.

    Args:
      images: [B, H, W, 1 or 3], floating-point in [0, 1]; grey is repeated.
      resize: "bilinear" between the nearest pixels, without smoothing where images
        shrink, then 2 x - 1: as pytorch-fid does. "bicubic" with antialiasing, then
        (255 x - 128) / 128: as clean-fid does, with what Pillow makes of floats.

    Returns:
      [B, 299, 299, 3], about in [-1, 1].

    Raises:
      ValueError: for other images, or another `resize`.

    Example:
      >>> prepare(jnp.ones((1, 8, 8, 1)), "bilinear").shape
      (1, 299, 299, 3)
    """
    if resize not in RESIZES:
        raise ValueError(f"unknown resize {resize!r}; known: {sorted(RESIZES)}")
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images must be [B, H, W, 1 or 3], got {images.shape}")
    checks.floating("images", images)
    shape = (images.shape[0], SIZE, SIZE, images.shape[-1])
    method, antialias = RESIZES[resize]
    x = jax.image.resize(images, shape, method, antialias=antialias)
    x = jnp.broadcast_to(x, (*shape[:-1], 3))
    return 2 * x - 1 if resize == "bilinear" else (255 * x - 128) / 128


RESIZES = {"bilinear": ("linear", False), "bicubic": ("cubic", True)}


def default_file() -> pathlib.Path:
    """Returns where the weights are: inception.npz in `cache_directory`."""
    return cache_directory() / "inception.npz"


def save(path: pathlib.Path, variables: Any, sha256: str) -> None:
    """Writes what `load` reads, in one piece.

    Args:
      path: an .npz file.
      variables: of `InceptionV3`.
      sha256: of the file that the weights come from.
    """
    arrays = traverse_util.flatten_dict(variables, sep="/")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial, partial.open("wb") as stream:
        np.savez(stream, **{_SHA256: np.array(sha256)}, **arrays)


def load(path: str | pathlib.Path | None = None) -> tuple[InceptionV3, Any, str]:
    """Reads the network from a file of arrays; nothing in it can run.

    Args:
      path: what `tools.convert.inception` wrote; None for `default_file()`.

    Returns:
      The network, its variables, and the sha256 of the file that they come from:
      `PUBLISHED_SHA256` for the weights of published numbers.

    Raises:
      FileNotFoundError: if there is none; it says where to get it.
      ValueError: if the file is damaged or another network's.
    """
    path = default_file() if path is None else pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no Inception weights in {path}: `python -m tools.convert.inception` "
            "downloads and converts them; without internet, get "
            "pt_inception-2015-12-05-6726825d.pth of github.com/mseitzer/pytorch-fid "
            "elsewhere and give it as its argument"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        sha256 = str(arrays.pop(_SHA256))
        stem = arrays["params/Conv2d_1a_3x3/conv/kernel"]
        network = InceptionV3(32 // stem.shape[-1])
        shapes = traverse_util.flatten_dict(variable_shapes(network), sep="/")
    except (KeyError, OSError, ValueError, ArithmeticError, zipfile.BadZipFile):
        raise ValueError(f"{path} is damaged or holds no Inception weights") from None
    for name in sorted(shapes.keys() | arrays.keys()):
        if np.shape(arrays.get(name)) != getattr(shapes.get(name), "shape", None):
            raise ValueError(f"{path} does not hold {name} of Inception-v3")
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} in {path} holds values that are not finite")
    return network, traverse_util.unflatten_dict(arrays, sep="/"), sha256


def variable_shapes(network: InceptionV3) -> Any:
    """Returns shapes and dtypes of the variables."""
    image = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), image)
