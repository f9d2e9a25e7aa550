"""Keeps compiled programs for the next start, which then need not compile."""

import os

import jax


def keep() -> None:
    """Keeps them in the user's cache directory, $XDG_CACHE_HOME or ~/.cache.

    JAX_COMPILATION_CACHE_DIR=DIR keeps them elsewhere, and
    JAX_ENABLE_COMPILATION_CACHE=false nowhere.
    """
    if jax.config.jax_compilation_cache_dir is None:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        path = os.path.join(cache, "jebm", "programs")
        jax.config.update("jax_compilation_cache_dir", path)
    least = "jax_persistent_cache_min_compile_time_secs"  # of JAX: one second
    if least.upper() not in os.environ:
        jax.config.update(least, 0.1)
