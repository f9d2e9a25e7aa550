import os

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import programs

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
    programs.keep()
    jax.config.update(FIELDS[1], 0.0)  # however quick this one compiles
    jax.jit(lambda x: jnp.sin(x) + 1.2345)(1.0).block_until_ready()
    kept = list((tmp_path / "jebm" / "programs").iterdir())
    assert any("lambda" in file.name for file in kept)
    unset.delenv("XDG_CACHE_HOME")
    jax.config.update(FIELDS[0], None)
    programs.keep()
    assert jax.config.jax_compilation_cache_dir == os.path.expanduser(
        "~/.cache/jebm/programs"
    )


def test_settings_of_jax_come_first(unset, tmp_path):
    jax.config.update(FIELDS[0], str(tmp_path))  # as of JAX_COMPILATION_CACHE_DIR
    unset.setenv(FIELDS[1].upper(), "7")
    jax.config.update(FIELDS[1], 7.0)
    programs.keep()
    assert [getattr(jax.config, field) for field in FIELDS] == [str(tmp_path), 7.0]


def test_short_programs_are_kept_too(unset):
    programs.keep()
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0.1
