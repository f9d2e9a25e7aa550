"""Float64 for a while, under the name that each JAX has for it."""

import jax

if hasattr(jax, "enable_x64"):
    enable_x64 = jax.enable_x64
else:  # before jax 0.8
    from jax.experimental import enable_x64

__all__ = ["enable_x64"]
