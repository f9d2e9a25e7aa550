"""How programs are compiled, and kept for the next start."""

import os

import jax

from experiments.errors import ConfigError
from jebm.files import default_cache

PRECISIONS = ("default", "high", "highest")


def set_precision(precision: str) -> None:
    """Sets that of matrix products and convolutions, one of `PRECISIONS` of JAX.

    On a TPU these take one, three or six passes in bfloat16, the last being float32; on
    a CPU all are float32.

    Raises:
      ConfigError: for another name.
    """
    if precision not in PRECISIONS:
        raise ConfigError(
            f"unknown matmul_precision {precision!r}; known: {list(PRECISIONS)}"
        )
    name = None if precision == "default" else precision
    jax.config.update("jax_default_matmul_precision", name)


def enable_compilation_cache() -> None:
    """Keeps compiled programs in the cache directory, $XDG_CACHE_HOME or ~/.cache.

    JAX_COMPILATION_CACHE_DIR=DIR keeps them elsewhere, and
    JAX_ENABLE_COMPILATION_CACHE=false nowhere.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        # JEBM_CACHE is not asked: programs have JAX's variable of their own.
        path = default_cache() / "programs"
        jax.config.update("jax_compilation_cache_dir", str(path))
    least = "jax_persistent_cache_min_compile_time_secs"  # of JAX: one second
    if least.upper() not in os.environ:
        jax.config.update(least, 0.1)
