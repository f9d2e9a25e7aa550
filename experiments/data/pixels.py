"""The values of pixels."""

import hashlib
import zlib
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiments.data.sources import Streamed

_TOGETHER = 1000  # images

Pixels = TypeVar("Pixels", jax.Array, np.ndarray)


def draw_binary(rng: np.random.Generator, images: np.ndarray | Streamed) -> np.ndarray:
    """Draws pixels of 0 and 255, each 255 with the probability that its grey says."""
    drawn = np.empty(images.shape, np.uint8)
    for part in _parts(len(images)):
        grey = images[part]
        drawn[part] = np.where(rng.random(grey.shape) < grey / 255, 255, 0)
    return drawn


def digest(images: np.ndarray | Streamed) -> str:
    """Digests all pixels of images uint8 [N, H, W, C], and their shape.

    Example:
      >>> digest(np.zeros((2, 1, 1, 1), np.uint8))[:8]
      '53039f99'
    """
    found = hashlib.sha256(str(images.shape).encode())
    for part in _parts(len(images)):
        found.update(np.ascontiguousarray(images[part]).data)
    return found.hexdigest()


def _parts(num):
    """Divides indices into parts: the memory is that of one, whatever is streamed."""
    return [slice(i, min(i + _TOGETHER, num)) for i in range(0, num, _TOGETHER)]


def draw_picture_binary(image: Image.Image) -> Image.Image:
    """Draws the pixels of one picture so, by noise of its own: always the same.

    Example:
      >>> grey = Image.new("L", (20, 20), 51)
      >>> drawn = np.asarray(draw_picture_binary(grey))
      >>> np.unique(drawn).tolist(), (drawn == 255).mean().item()
      ([0, 255], 0.195)
    """
    pixels = np.asarray(image)
    rng = np.random.default_rng(zlib.crc32(pixels.tobytes()))
    return Image.fromarray(draw_binary(rng, pixels))


def is_binary(images: np.ndarray) -> bool:
    """Says whether all pixels are black or white."""
    return bool(np.isin(images, (0, 255)).all())


def to_unit(images: Pixels) -> Pixels:
    """Scales uint8 pixels to float32 in [0, 1]; nowhere else are images scaled."""
    return images.astype(jnp.float32) / 255
