"""Random changes of the images of training."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.errors import ConfigError

AUGMENTATIONS = ("flip", "crop", "affine")


BENT, MOVED = 0.14, 0.04  # most of "affine": per entry of the matrix, per side


def affine(images: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Turns, stretches, slants and moves images a little, by maps of their coordinates.

    A map is A (c - middle) + middle + t, with |A - I| <= `BENT` in every entry and |t|
    <= `MOVED` of the side; pixels are bilinear, and beyond the border as at the border.
    It is computed on the host, by JAX's CPU backend.

    Args:
      images: uint8 [B, H, W, C].
      drawn: the maps, in [0, 1), [B, 2, 3]: A, and in the last column t; 1/2 is I, 0.

    Returns:
      uint8 [B, H, W, C].

    Example:
      >>> images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
      >>> np.array_equal(affine(images, np.full((3, 2, 3), 0.5)), images)
      True
    """
    off = 2 * drawn - 1
    side = np.array(images.shape[1:3])
    middle = (side - 1) / 2
    matrices = np.eye(2) + BENT * off[..., :2]
    offsets = middle - matrices @ middle + MOVED * side * off[..., 2]
    with jax.default_device(cpu_device()):
        return np.asarray(_affine(images, np.float32(matrices), np.float32(offsets)))


def cpu_device():
    """Returns the CPU, as a device of JAX's.

    Raises:
      ConfigError: where JAX has no such backend.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError as error:
        raise ConfigError(
            "data.augment 'affine' needs JAX's CPU backend, which is not there; "
            f"does JAX_PLATFORMS leave out cpu? {error}"
        ) from None


@jax.jit
def _affine(images, matrices, offsets):
    row, column = jnp.indices(images.shape[1:3], jnp.float32)

    def one(arguments):
        image, matrix, offset = arguments
        places = [
            a[0] * row + a[1] * column + b for a, b in zip(matrix, offset, strict=True)
        ]

        def moved(channel):
            return jax.scipy.ndimage.map_coordinates(
                channel, places, order=1, mode="nearest"
            )

        return jnp.round(jax.vmap(moved, 2, 2)(image.astype(jnp.float32)))

    # One after the other: an image is then the same in a batch of any size.
    return jax.lax.map(one, (images, matrices, offsets)).astype(jnp.uint8)
