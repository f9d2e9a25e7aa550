"""What every metric demands of its arrays."""

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
