"""Grids of images, as PNG files."""

import math
import pathlib

import numpy as np
from PIL import Image

_MIN_WIDTH = 640  # pixels; small images are enlarged, without smoothing


def grid(images: np.ndarray, columns: int | None = None) -> Image.Image:
    """Lays out images [N, H, W, C] in [0, 1] row by row; a square by default."""
    images = np.asarray(images)
    num, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(num))
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


def beside(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Alternates two sets of images, for a grid of pairs: left, right, left, ..."""
    return np.stack([left, right], axis=1).reshape(-1, *np.shape(left)[1:])


def save_grid(
    path: pathlib.Path, images: np.ndarray, columns: int | None = None
) -> None:
    """Writes `grid(images)` to a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grid(images, columns).save(path)
