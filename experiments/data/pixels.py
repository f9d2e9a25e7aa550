"""The values of pixels."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

Pixels = TypeVar("Pixels", jax.Array, np.ndarray)


def draw_binary(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """Draws pixels of 0 and 255, each 255 with the probability that its grey says."""
    return np.where(rng.random(images.shape) < images / 255, 255, 0).astype(np.uint8)


def to_unit(images: Pixels) -> Pixels:
    """Scales uint8 pixels to float32 in [0, 1]; nowhere else are images scaled."""
    return images.astype(jnp.float32) / 255
