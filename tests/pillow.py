"""Resizing by Pillow, which ours is held against."""

import jax.numpy as jnp
import numpy as np
from PIL import Image


def assert_prepared_as_by_pillow(prepare, size, side, resampling, centre):
    """Holds `prepare` against Pillow on float channels, on two random images."""
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3)).astype(np.uint8)
    found = prepare(jnp.asarray(images, jnp.float32) / 255)
    for image, mine in zip(images, np.asarray(found), strict=True):
        for channel in range(3):
            layer = Image.fromarray(image[..., channel].astype(np.float32))
            layer = layer.resize((side, side), resampling)
            expected = (np.asarray(layer) - centre) / 128
            # Positions are of float32: 1e-5 pixels, times the steps between pixels.
            np.testing.assert_allclose(mine[..., channel], expected, atol=1e-4)
