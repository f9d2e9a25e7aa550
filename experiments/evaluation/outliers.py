"""Images of elsewhere: other data sets, and what is made of a data set's own images."""

import numpy as np
from PIL import Image

from experiments.data import loaders
from experiments.data.loaders import Options
from experiments.errors import ConfigError
from experiments.options import Data


def outliers(name: str, images: np.ndarray, data: Data) -> np.ndarray:
    """Returns images of elsewhere, as many as there are `images`, of their shape.

    Args:
      name: of `known`. Held-out images of a data set are converted to grey or RGB and
        scaled with antialiasing; they are made up in its shape where `data` are.
      images: held-out images of the data set itself, uint8 [N, H, W, C].
      data: config.data; its `data_dir` is where prepared data lies.

    Raises:
      ConfigError: for data that is not prepared.
    """
    if name in MADE:
        return MADE[name](images)
    loader = "fake" if data.is_fake and name in loaders.SHAPES else name
    options = Options(data.data_dir, fake_like=name)
    others = loaders.LOADERS[loader](options)["test"].images
    height, width, channels = images.shape[1:]
    mode = "L" if channels == 1 else "RGB"
    converted = [
        Image.fromarray(np.squeeze(other, -1) if other.shape[-1] == 1 else other)
        .convert(mode)
        .resize((width, height), Image.Resampling.LANCZOS)
        for other in others[: len(images)]
    ]
    stacked = np.stack([np.asarray(image) for image in converted])
    return stacked.reshape(-1, *images.shape[1:])


def known() -> list[str]:
    """Returns the names that `outliers` takes."""
    return sorted((MADE | loaders.LOADERS).keys() - {"folder", "fake"})


def require(name: str, data: Data) -> None:
    """Refuses a data set that is not prepared, without reading it.

    Raises:
      ConfigError: telling how to get it.
    """
    if not data.is_fake:  # then others are made up as well
        loaders.require(name, Options(data.data_dir))


def _noise(images):
    """Every value uniform in 0..255."""
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, images.shape, np.uint8)


def _constant(images):
    """One value each, evenly from 0 to 255."""
    levels = np.linspace(0, 255, len(images)).round().astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], images.shape)


def _rotated(images):
    """A quarter turn."""
    if images.shape[1] != images.shape[2]:
        raise ConfigError(f"outliers 'rotated' needs squares, got {images.shape[1:3]}")
    return np.rot90(images, axes=(1, 2))


def _exchanged(images):
    """Each quarter in the place of the one across."""
    return np.roll(images, (images.shape[1] // 2, images.shape[2] // 2), axis=(1, 2))


MADE = {
    "noise": _noise,
    "inverted": lambda images: 255 - images,
    "rotated": _rotated,
    "constant": _constant,
    "exchanged": _exchanged,
}
