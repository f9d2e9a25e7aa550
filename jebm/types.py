"""Types of arrays with their axes, for the public functions; the tests check them.

Axes are n examples, h rows, w columns, c colours; "..." is the shape of a layer.
"""

import jax
import jaxtyping
import numpy as np
from jaxtyping import Float

Key = jaxtyping.Key[jax.Array, ""]  # typed, as of jax.random.key
Images = Float[jax.Array, "n h w c"] | Float[np.ndarray, "n h w c"]  # in [0, 1]
Image = Float[jax.Array, "h w c"] | Float[np.ndarray, "h w c"]
Latents = tuple[Float[jax.Array, "n ..."], ...]  # bottom to top
Position = tuple[Float[jax.Array, "..."], ...]  # of one chain, bottom to top
PerExample = Float[jax.Array, " n"]  # nats
Scalar = Float[jax.Array, ""]  # nats
