"""Opens a trained run."""

import math
import pathlib
import warnings

import jax

import jebm
from experiments.data import datasets
from experiments.errors import ConfigError
from experiments.rundir.settings import as_json, check_settings
from experiments.runtime.files import read_json
from jebm import checkpoints


def open_run(config, path: pathlib.Path):
    """Model, averaged parameters, their step, and data of the run in `path`."""
    check_log(config)
    check_settings(path, config, "read")
    splits = datasets.load(**config.data)
    model = read_model(config, path)
    template = jax.eval_shape(jebm.init, jax.random.key(0), model)
    step, items = restore_aloud(path, {"ema": template})
    return model, items["ema"], step, splits


def read_model(config, path: pathlib.Path) -> jebm.Model:
    """The model that model.json of `path` holds, with the chains of config."""
    spec = read_json(path / "model.json")
    own = {"chains": as_json(config)["chains"], "remat": config.remat}
    try:
        return jebm.build(spec | own)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ConfigError(f"{path / 'model.json'}: {error}") from error


def check_log(config) -> None:
    """Refuses a seed and settings of log that cannot work, naming the field."""
    log = config.log
    if not 0 <= config.seed < 2**32:
        raise ConfigError(f"seed must lie in [0, 2**32), got {config.seed}")
    intervals = ("checkpoint_every", "sample_every", "diagnose_every")
    # The guard goes back behind the newest checkpoint, and one more may be damaged.
    least = {"every": 1, **dict.fromkeys(intervals, 1), "keep": 3}
    for name, low in least.items():
        if log[name] < low:
            raise ConfigError(f"log.{name} must be at least {low}, got {log[name]}")
    for name in intervals:
        if log[name] % log.every:
            raise ConfigError(
                f"log.{name} must be a multiple of log.every, so that what is saved "
                f"and drawn has been checked, got {log[name]} and {log.every}"
            )
    root = math.isqrt(max(log.num_samples, 0))
    if root**2 != log.num_samples or root % 2 or not root:
        raise ConfigError(
            f"log.num_samples must be an even square, got {log.num_samples}"
        )


def restore_aloud(path, templates):
    """`checkpoints.restore`, its warnings printed as sentences."""
    with warnings.catch_warnings(record=True) as passed_over:
        warnings.simplefilter("always", UserWarning)
        restored = checkpoints.restore(path, templates)
    for warning in passed_over:
        print(f"warning: {warning.message}")
    return restored
