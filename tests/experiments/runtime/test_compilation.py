import os

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments.errors import ConfigError
from experiments.runtime import compilation

FIELDS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def unset(monkeypatch):
    """As without the environment of the tests; all as it was when the test is over."""
    before = {field: getattr(jax.config, field) for field in FIELDS}
    for field in FIELDS:
        monkeypatch.delenv(field.upper(), raising=False)
    jax.config.update(FIELDS[0], None)
    jax.config.update(FIELDS[1], 1.0)
    compilation_cache.reset_cache()
    yield monkeypatch
    for field, value in before.items():
        jax.config.update(field, value)
    compilation_cache.reset_cache()


def test_programs_are_kept_in_the_users_cache(unset, tmp_path):
    unset.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation.enable_compilation_cache()
    jax.config.update(FIELDS[1], 0.0)  # however quick this one compiles
    jax.jit(lambda x: jnp.sin(x) + 1.2345)(1.0).block_until_ready()
    kept = list((tmp_path / "jebm" / "programs").iterdir())
    assert any("lambda" in file.name for file in kept)
    unset.delenv("XDG_CACHE_HOME")
    jax.config.update(FIELDS[0], None)
    compilation.enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == os.path.expanduser(
        "~/.cache/jebm/programs"
    )


def test_settings_of_jax_come_first(unset, tmp_path):
    jax.config.update(FIELDS[0], str(tmp_path))  # as of JAX_COMPILATION_CACHE_DIR
    unset.setenv(FIELDS[1].upper(), "7")
    jax.config.update(FIELDS[1], 7.0)
    compilation.enable_compilation_cache()
    assert [getattr(jax.config, field) for field in FIELDS] == [str(tmp_path), 7.0]


def test_short_programs_are_kept_too(unset):
    compilation.enable_compilation_cache()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.1


@pytest.mark.parametrize("precision", compilation.PRECISIONS)
def test_matrix_products_have_the_precision_that_is_asked_for(precision):
    before = jax.config.jax_default_matmul_precision
    try:
        compilation.set_precision(precision)
        text = jax.jit(jnp.dot).lower(jnp.ones((2, 2)), jnp.ones((2, 2))).as_text()
        expected = {"default": "DEFAULT", "high": "HIGH", "highest": "HIGHEST"}
        told = f"precision = [{expected[precision]}, {expected[precision]}]"
        assert told in text
    finally:
        jax.config.update("jax_default_matmul_precision", before)


def test_unknown_precision_is_refused():
    with pytest.raises(ConfigError, match="unknown matmul_precision 'exact'; known: "):
        compilation.set_precision("exact")
