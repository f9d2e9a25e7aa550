"""Runs of the tiny configuration, and what they leave behind."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest
from absl import flags
from absl.testing import flagsaver

import jebm
from experiments import main, models, options
from experiments.rundir.metrics import read_metrics
from experiments.training import learner, train
from experiments.training.hooks import Hooks
from experiments.training.state import checkpoint_items
from jebm import chains, checkpoints
from jebm.learning import losses

ROOT = pathlib.Path(main.__file__).parents[1]
CONFIG = f"--config={ROOT / 'experiments' / 'configs' / 'test.py'}"


def run(config, path, hooks=Hooks(), **patches):
    """Training alone, by default; `patches` replace names that a step uses."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in patches.items():
            module = next(m for m in (losses, chains) if hasattr(m, name))
            patch.setattr(module, name, value)
        train.train(options.read(config), path, hooks)


def build_model(config, image_shape=(8, 8, 1)):
    """The model of a configuration, by default of digits."""
    return models.build_model(options.read(config), image_shape)


def create_state(config, model, backbone=None):
    """The state before the first step of a configuration."""
    experiment = options.read(config)
    key = jax.random.key(experiment.seed)
    num_walkers = experiment.log.num_walkers
    return learner.create_state(key, experiment.learning, model, backbone, num_walkers)


def make_train_step(config, model):
    """The training step of a configuration."""
    return learner.make_train_step(options.read(config).learning, model)


def run_main(*arguments, hooks=Hooks()):
    """The command line in this process, by default training without figures."""
    argv = ["main", *map(str, arguments)]
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)  # where config_flags looks for overrides
        try:
            main.main(main.parse(argv), hooks=hooks)
        finally:
            flags.FLAGS.unparse_flags()


_ONE_DEVICE = "--xla_force_host_platform_device_count=1"
_WITHOUT_FIGURES = """
import functools
from absl import app
from experiments import main
from experiments.training.hooks import Hooks
app.run(functools.partial(main.main, hooks=Hooks()), flags_parser=main.parse)
"""


def start_main(*arguments, figures=True, fault=""):
    """The command line as a process of its own, on one device.

    Without figures, statements of a `fault` may be run before.
    """
    # After other flags of XLA, which are those of the tests: see tests/conftest.py.
    flags = f"{os.environ.get('XLA_FLAGS', '')} {_ONE_DEVICE}"
    settings = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment = os.environ | settings | {"XLA_FLAGS": flags}
    program = ["-c", fault + _WITHOUT_FIGURES]
    if figures:
        program = ["-m", "experiments.main"]
    return subprocess.Popen(
        [sys.executable, *program, CONFIG, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def state_digests(config, path, step):
    """A digest of every array of a checkpoint, as read back from it."""
    model = build_model(config)
    backbone = jebm.init(jax.random.key(0), model).backbone
    templates = checkpoint_items(create_state(config, model, backbone))
    return checkpoints.digests(checkpoints.restore(path, templates, step)[1])


def data_files(path, step, item):
    """Where the arrays of a checkpoint's item are stored."""
    files = sorted((path / "checkpoints" / str(step) / item).rglob("d/*"))
    assert files
    return [file for file in files if file.is_file()]


def flip_bytes(path, step, item):
    """Damages the arrays of a checkpoint's item without changing their size."""
    for file in data_files(path, step, item):
        data = bytearray(file.read_bytes())
        middle = len(data) // 2
        for i in range(middle - 4, middle + 4):
            data[i] ^= 0xFF
        file.write_bytes(data)


def metrics(path):
    """The lines of metrics.jsonl but for what a clock decides."""
    lines = read_metrics(path)
    return [{k: v for k, v in x.items() if k != "images_per_second"} for x in lines]


def contents(path):
    """The bytes of every file below `path`."""
    return {
        str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()
    }


def rolled_back_fields(digests):
    """What a rollback changes: its record, and the factor of the energies' steps."""
    monitored = {f"['train_state']['guard'].{field}" for field in ("rescues", "good")}
    factor = {name for name in digests if "hyperparams['step_size']" in name}
    assert len(factor) == 1 and monitored <= digests.keys()
    return monitored | factor
