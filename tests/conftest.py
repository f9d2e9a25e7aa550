"""Two CPU devices, so that pmap is truly run; no silent promotion of any kind."""

import atexit
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
# Most tests compile for longer than they compute, and many compile the same: once is
# enough for all processes of a run of tests. The first of them makes the cache.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jebm-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    atexit.register(
        shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True
    )
# XLA's older emitters of loops compile in two thirds of the time. An XLA that does not
# know a flag ends its process, so another tries it; all of a run inherit the answer.
if "JEBM_TESTS_XLA_TRIED" not in os.environ:
    os.environ["JEBM_TESTS_XLA_TRIED"] = "1"
    _flags = os.environ.get("XLA_FLAGS", "")
    _flags = f"{_flags} --xla_cpu_use_fusion_emitters=false".strip()
    _tried = subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env=os.environ | {"XLA_FLAGS": _flags},
        capture_output=True,
    )
    if _tried.returncode == 0:
        os.environ["XLA_FLAGS"] = _flags

import jax
import pytest
from ml_collections import config_dict

from tests.precision import enable_x64

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Drops the compiled programs of a file of tests when it is done.

    Each holds some memory maps; all of them together pass the limit that Linux sets a
    process (vm.max_map_count), and the compiler then crashes.
    """
    yield
    jax.clear_caches()


def pytest_terminal_summary(terminalreporter, config):
    """Says how to run the tests that were left out."""
    if config.option.markexpr == "not slow":
        terminalreporter.write_line(
            "These are the fast tests. The slow ones: python -m pytest -m slow"
        )


@pytest.fixture
def x64():
    """Float64 for the length of a test."""
    with enable_x64(True):
        yield


@pytest.fixture
def test_config() -> config_dict.ConfigDict:
    """The tiny configuration, free to be changed."""
    from experiments.configs import test

    return test.get_config()


def made_once(tmp_path_factory, name, make):
    """The directory `name` that `make(path)` fills, once for all workers of a run."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    path, done = root / name, root / f"{name}.done"
    with (root / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not done.exists():
            make(path)
            done.touch()
    return path


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory):
    """The directory of a run of the tiny configuration; not to be changed.

    It is trained, with samples on the way, but neither drawn nor evaluated.
    """
    from experiments import main, options
    from experiments.configs import test

    def make(path):
        hooks = main.HOOKS._replace(end=lambda experiment, path: None)
        main.run("train", options.read(test.get_config()), path, hooks)

    return made_once(tmp_path_factory, "trained", make)


@pytest.fixture(scope="session")
def finished_run(trained_run, tmp_path_factory):
    """A copy of that run with its figures and its evaluation; not to be changed."""
    from experiments import main, options
    from experiments.configs import test

    def make(path):
        shutil.copytree(trained_run, path)
        main.finish(options.read(test.get_config()), path)

    return made_once(tmp_path_factory, "finished", make)
