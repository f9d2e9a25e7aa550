"""What every metric demands of its arrays."""

import jax.numpy as jnp
import numpy as np


def finite(name: str, values: np.ndarray) -> None:
    """Demands that no value is NaN or infinite.

    Args:
      name: of the argument, for the message.
      values: numbers, of any shape.

    Raises:
      ValueError: if some are; it says how many out of how many.

    Example:
      >>> finite("x", np.array([[1.0, np.nan], [np.inf, 2.0]]))
      Traceback (most recent call last):
      ValueError: x must be finite, got 2 of 4 values that are NaN or infinite
    """
    size = np.size(values)
    wrong = size - np.count_nonzero(np.isfinite(values))
    if wrong:
        raise ValueError(
            f"{name} must be finite, got {wrong} of {size} values that are NaN or "
            "infinite"
        )


def floating(name: str, images) -> None:
    """Demands floating-point images.

    Args:
      name: of the argument, for the message.
      images: an array.

    Raises:
      ValueError: for any other dtype.

    Example:
      >>> floating("x", np.zeros((1, 8, 8, 3), np.uint8))
      Traceback (most recent call last):
      ValueError: x must be floating-point in [0, 1], got uint8
    """
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating-point in [0, 1], got {images.dtype}")
