"""The values of pixels."""

import zlib
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

Pixels = TypeVar("Pixels", jax.Array, np.ndarray)


def draw_binary(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """Draws pixels of 0 and 255, each 255 with the probability that its grey says."""
    return np.where(rng.random(images.shape) < images / 255, 255, 0).astype(np.uint8)


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
