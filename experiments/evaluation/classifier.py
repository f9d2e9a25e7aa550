"""Small classifiers whose features the distances between images are measured in.

Inception's features are made for large photographs. For small data sets a classifier of
the data itself takes its place: classifiers/NAME.npz holds its weights, NAME.json what
it is, how it was made and how well it does. `tools.data.train_classifier` writes both.
"""

import functools
import hashlib
import io
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from experiments.data.loaders import SHAPES, UNLABELLED
from experiments.errors import ConfigError
from experiments.runtime.batching import map_batches
from experiments.runtime.files import write_json
from jebm.files import written_whole

DIRECTORY = pathlib.Path(__file__).parent / "classifiers"
BATCH_SIZE = 256
LABELLED = set(SHAPES) - set(UNLABELLED)  # classifiers can be trained of these


class Classifier(nn.Module):
    """Convolutions, each followed by a pooling that halves the image.

    Attributes:
      num_classes: C.
      widths: channels of each 3x3 convolution.
      num_features: D, width of the dense layer before the last.
    """

    num_classes: int
    widths: tuple[int, ...]
    num_features: int

    def setup(self):
        """Declares the layers."""
        self.convolutions = [nn.Conv(width, (3, 3)) for width in self.widths]
        self.hidden = nn.Dense(self.num_features)
        self.head = nn.Dense(self.num_classes)

    def features(self, images: jax.Array) -> jax.Array:
        """Maps images [B, H, W, channels] in [0, 1] to activations [B, D]."""
        x = images
        for convolution in self.convolutions:
            x = _halve(nn.gelu(convolution(x)))
        return nn.gelu(self.hidden(x.reshape(x.shape[0], -1)))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images [B, H, W, channels] in [0, 1] to logits [B, C]."""
        return self.head(self.features(images))


def _halve(x):
    """Averages each 2x2 pixels, odd last ones dropped: [B, H//2, W//2, channels]."""
    # nn.avg_pool divides by integers, which strict promotion of dtypes refuses.
    return nn.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") / 4


def known(directory: pathlib.Path = DIRECTORY) -> list[str]:
    """Names the data sets that there is a classifier of."""
    return sorted(path.stem for path in directory.glob("*.json"))


def load(
    data_name: str, directory: pathlib.Path = DIRECTORY
) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, Any]]:
    """Loads the features of a data set.

    Args:
      data_name: a key of `loaders.LOADERS` that a classifier has been trained on.
      directory: where the classifiers are.

    Returns:
      A function of images, float [N, H, W, channels] in [0, 1], that returns features,
      float32 [N, D], N >= 1. It raises a ValueError for other images.
      A dict of facts: `file`, `sha256`, `accuracy` on the held-out split, and
      `num_features`.

    Raises:
      ConfigError: if the data set has no classifier, or its file is damaged.

    Example:
      >>> features, facts = load("digits")
      >>> features(np.zeros((3, 8, 8, 1))).shape
      (3, 32)
      >>> facts["file"]
      'digits.npz'
    """
    classifier, params, facts = read(data_name, directory)

    def features(images):
        _check_images(images, tuple(facts["image_shape"]))
        return outputs(classifier, params, images, "features")

    keys = ("file", "sha256", "accuracy", "num_features")
    return features, {key: facts[key] for key in keys}


def absent(data_name: str, directory: pathlib.Path = DIRECTORY) -> str:
    """Says that a data set has no classifier, and what can be done about it."""
    lacking = f"data set {data_name!r} has no classifier; known: {known(directory)}"
    if data_name in LABELLED:
        return f"{lacking}; {_command(data_name)} trains one"
    return (
        f"{lacking}. Without one --mode=eval --config.eval.protocol=ood (or "
        "likelihood) measures the run"
    )


def _command(data_name):
    return f"`python -m tools.data.train_classifier --data={data_name}`"


def labels(data_name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a data set's classifier: a map of images to classes, int [N]; see `load`.

    Example:
      >>> labels("digits")(np.zeros((3, 8, 8, 1))).shape
      (3,)
    """
    classifier, params, _ = read(data_name)
    return lambda images: outputs(classifier, params, images).argmax(axis=-1)


def read(
    data_name: str, directory: pathlib.Path = DIRECTORY
) -> tuple[Classifier, Any, dict[str, Any]]:
    """Reads a classifier, its parameters and all of its facts; raises as `load`."""
    if data_name not in known(directory):
        raise ConfigError(absent(data_name, directory))
    file = directory / f"{data_name}.npz"
    damaged = (
        f"{file} is damaged or does not belong to its .json: restore both, or train "
        f"them again by {_command(data_name)}"
    )
    try:
        facts = json.loads(file.with_suffix(".json").read_text())
        content = file.read_bytes()
    except (OSError, ValueError):
        raise ConfigError(damaged) from None
    if hashlib.sha256(content).hexdigest() != facts["sha256"]:
        raise ConfigError(damaged)
    classifier = Classifier(
        facts["num_classes"], tuple(facts["widths"]), facts["num_features"]
    )
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return classifier, traverse_util.unflatten_dict(dict(arrays), sep="/"), facts


def write(
    data_name: str,
    classifier: Classifier,
    params: Any,
    facts: Mapping[str, Any],
    directory: pathlib.Path = DIRECTORY,
) -> None:
    """Writes what `read` reads; `facts` are further entries of the json."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{data_name}.npz"
    with written_whole(path) as partial, partial.open("wb") as stream:
        np.savez(stream, **traverse_util.flatten_dict(params, sep="/"))
    entries = {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "num_classes": classifier.num_classes,
        "widths": classifier.widths,
        "num_features": classifier.num_features,
        **facts,
    }
    write_json(path.with_suffix(".json"), entries)


def outputs(
    classifier: Classifier, params: Any, images: np.ndarray, method: str = "__call__"
) -> np.ndarray:
    """Applies a method to images [N, ...], N >= 1, in batches of one shape."""

    def batch(_, indices):
        chosen = np.asarray(images[indices], np.float32)
        return _apply(classifier, method, params, chosen)

    return map_batches(None, batch, np.arange(len(images)), BATCH_SIZE)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(classifier, method, params, images):
    return classifier.apply(params, images, method=method)


def _check_images(images, image_shape):
    shape, dtype = np.shape(images), images.dtype
    if (
        shape[1:] != image_shape
        or not shape[0]
        or not np.issubdtype(dtype, np.floating)
    ):
        raise ValueError(
            f"images must be float [N >= 1, {', '.join(map(str, image_shape))}], "
            f"got {dtype} {shape}"
        )
    if not (images.min() >= 0 and images.max() <= 1):  # so written, it catches nan
        raise ValueError("images must be in [0, 1]")
