"""Starts trainings of the tiny configuration as processes of their own, quickly."""

import functools
import multiprocessing
import os
import pathlib
import sys
from collections.abc import Callable

import jax
from absl import app

from experiments import command_line, main
from experiments.configs import test
from experiments.training.hooks import Hooks

_SETTINGS = {
    "jax_platforms": "cpu",
    "jax_disable_most_optimizations": True,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
}
# Each is forked from a server that has imported everything.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([__name__])


def start(function: Callable, *arguments, log: pathlib.Path, **settings):
    """Runs `function(*arguments)` in a process of its own.

    Args:
      function: of a module that can be imported.
      *arguments: of the function.
      log: file that gets what the process prints.
      **settings: of `jax.config`, beside those of a CPU that compiles quickly.

    Returns:
      The started `multiprocessing.Process`.
    """
    arguments = (function, arguments, str(log), _SETTINGS | settings)
    process = _SERVER.Process(target=_enter, args=arguments, daemon=True)
    process.start()
    return process


def _enter(function, arguments, log, settings):
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    for name, value in settings.items():
        jax.config.update(name, value)
    function(*arguments)


def command(*arguments: str) -> None:
    """Runs the command line on the tiny config, without pictures and evaluation."""
    sys.argv = ["main", f"--config={test.__file__}", *map(str, arguments)]
    train = functools.partial(main.main, hooks=Hooks())
    app.run(train, flags_parser=command_line.parse)
