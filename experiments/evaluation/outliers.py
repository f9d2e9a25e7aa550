"""Images from elsewhere: other data sets, and changed images of the data set itself."""

import pathlib
import string

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from experiments.data import loaders
from experiments.data.decoding import as_mode, fit
from experiments.data.loaders import Options
from experiments.data.pixels import draw_binary, is_binary
from experiments.errors import ConfigError
from experiments.options import Data

_TYPEFACES = ("Sans", "Sans-Bold", "Sans-Oblique", "Serif", "Serif-Bold", "SansMono")


def outliers(name: str, images: np.ndarray, data: Data) -> np.ndarray:
    """Returns images from elsewhere, with the number and the shape of `images`.

    Where all pixels of `images` are black or white, those of elsewhere are drawn so
    too, each pixel white with the probability that its grey says: no score could be
    credited for telling grey from binary.

    Args:
      name: of `known`. Held-out images of a data set are converted to grey or RGB, cut
        to the middle and scaled, as photographs are; they are made up in its shape
        where `data` are.
      images: held-out images of the data set itself, uint8 [N, H, W, C].
      data: config.data; its `data_dir` is where prepared data lies.

    Raises:
      ConfigError: for data that is not prepared.
    """
    made = MADE[name](images) if name in MADE else _of_data_set(name, images, data)
    if is_binary(images):
        return draw_binary(np.random.default_rng(0), made)
    return made


def _of_data_set(name, images, data):
    """Returns held-out images of the data set `name`, of the shape of `images`."""
    loader = "fake" if data.is_fake and name in loaders.SHAPES else name
    options = Options(_prepared_in(data), fake_like=name)
    others = loaders.LOADERS[loader](options)["test"].images
    height, width, channels = images.shape[1:]
    converted = [
        fit(as_mode(_image_of(other), channels), 0.5, (width, height))
        for other in others[: len(images)]
    ]
    stacked = np.stack([np.asarray(image) for image in converted])
    return stacked.reshape(-1, *images.shape[1:])


def _image_of(pixels):
    return Image.fromarray(np.squeeze(pixels, -1) if pixels.shape[-1] == 1 else pixels)


def _prepared_in(data):
    """Returns where prepared data lies: not in a folder of pictures."""
    return None if data.name == "folder" else data.data_dir


def known() -> list[str]:
    """Returns the names that `outliers` takes."""
    return sorted((MADE | loaders.LOADERS).keys() - {"folder", "fake"})


def require(name: str, data: Data) -> None:
    """Refuses a data set that is not prepared, without reading it.

    Raises:
      ConfigError: telling how to get it.
    """
    if not data.is_fake:  # then others are made up as well
        loaders.require(name, Options(_prepared_in(data)))


def _noise(images):
    """Draws every value uniformly from 0..255."""
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, images.shape, np.uint8)


def _constant(images):
    """Makes images of one value each, evenly from 0 to 255."""
    levels = np.linspace(0, 255, len(images)).round().astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], images.shape)


def _rotated(images):
    """Rotates each image by a quarter turn."""
    if images.shape[1] != images.shape[2]:
        raise ConfigError(f"outliers 'rotated' needs squares, got {images.shape[1:3]}")
    return np.rot90(images, axes=(1, 2))


def _letters(images):
    """Draws letters of several typefaces, white on black, turned and scaled."""
    generator = np.random.default_rng(0)
    height, width, channels = images.shape[1:]
    folder = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
    files = [folder / f"DejaVu{name}.ttf" for name in _TYPEFACES]

    def letter():
        size = int(min(height, width) * generator.uniform(0.6, 0.9))
        font = ImageFont.truetype(str(files[generator.integers(len(files))]), 4 * size)
        # Four times as large at first, as small letters are coarse.
        picture = Image.new("L", (4 * width, 4 * height))
        centre = generator.uniform(0.42, 0.58, 2) * (4 * width, 4 * height)
        text = string.ascii_letters[generator.integers(len(string.ascii_letters))]
        ImageDraw.Draw(picture).text(tuple(centre), text, 255, font, anchor="mm")
        turned = picture.rotate(generator.uniform(-12, 12), Image.Resampling.BILINEAR)
        return np.asarray(turned.resize((width, height), Image.Resampling.BOX))

    drawn = np.stack([letter() for _ in range(len(images))])[..., None]
    return np.repeat(drawn, channels, axis=-1)


def _exchanged(images):
    """Exchanges each quarter of an image with the one diagonally across."""
    return np.roll(images, (images.shape[1] // 2, images.shape[2] // 2), axis=(1, 2))


MADE = {
    "noise": _noise,
    "inverted": lambda images: 255 - images,
    "rotated": _rotated,
    "constant": _constant,
    "exchanged": _exchanged,
    "letters": _letters,
}
