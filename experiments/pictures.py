"""Grids of images, as PNG files."""

import math
import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

CAPTION = "Description"  # the field of a PNG file that holds its caption
_MIN_WIDTH = 640  # pixels; small images are enlarged, without smoothing


def grid(images: np.ndarray, columns: int | None = None, group: int = 1) -> Image.Image:
    """Lays out images [N, H, W, C] in [0, 1] row by row; a square by default.

    Of each `group` of images that follow each other, all are then in one row.
    """
    images = np.asarray(images)
    num, height, width, channels = images.shape
    columns = columns or group * math.ceil(math.sqrt(num) / group)
    rows = math.ceil(num / columns)
    pixels = np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)
    # One grey pixel between neighbours.
    canvas = np.full((rows, height + 1, columns, width + 1, channels), 96, np.uint8)
    for n in range(num):
        canvas[n // columns, :height, n % columns, :width] = pixels[n]
    canvas = canvas.reshape(rows * (height + 1), columns * (width + 1), channels)
    picture = Image.fromarray(
        canvas[:-1, :-1, 0] if channels == 1 else canvas[:-1, :-1]
    )
    scale = max(1, math.ceil(_MIN_WIDTH / picture.width))
    return picture.resize(
        (picture.width * scale, picture.height * scale), Image.Resampling.NEAREST
    )


def beside(left: ArrayLike, right: ArrayLike) -> np.ndarray:
    """Alternates two sets of images, for a grid of pairs: left, right, left, ..."""
    return np.stack([left, right], axis=1).reshape(-1, *np.shape(left)[1:])


def stamp_all(files: Sequence[pathlib.Path], text: str) -> None:
    """Stamps `text` on the PNG files among `files`; "" leaves all as they are."""
    for file in files:
        if text and file.suffix == ".png":
            stamp(file, text)


def save(picture: Image.Image, file: pathlib.Path, caption: str = "") -> None:
    """Writes a PNG file with its caption, see `caption_of`, and makes its directory."""
    file.parent.mkdir(parents=True, exist_ok=True)
    information = PngImagePlugin.PngInfo()
    if caption:
        information.add_text(CAPTION, caption)
    picture.save(file, pnginfo=information)


def save_figure(figure: Figure, file: pathlib.Path, caption: str) -> None:
    """Writes a figure of matplotlib likewise."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150, metadata={CAPTION: caption})


def caption_of(file: pathlib.Path) -> str:
    """Returns the caption that a PNG file holds; its name where there is none."""
    with Image.open(file, formats=["PNG"]) as opened:
        return opened.info.get(CAPTION) or file.stem


def stamp(file: pathlib.Path, text: str) -> None:
    """Adds a line of text at the top of a PNG file."""
    with Image.open(file, formats=["PNG"]) as opened:
        picture, caption = opened.convert("RGB"), opened.info.get(CAPTION, "")
    size = max(12, min(picture.width // 25, 40))
    font = ImageFont.load_default(size)
    canvas = Image.new("RGB", (picture.width, picture.height + 2 * size), "white")
    canvas.paste(picture, (0, 2 * size))
    ImageDraw.Draw(canvas).text((size // 2, size // 2), text, "crimson", font)
    save(canvas, file, caption)
