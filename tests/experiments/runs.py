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
from experiments import main
from experiments.rundir.metrics import read_metrics
from experiments.training import learner, train
from experiments.training.state import checkpoint_items
from jebm import chains, checkpoints
from jebm.learning import losses

ROOT = pathlib.Path(main.__file__).parents[1]
CONFIG = f"--config={ROOT / 'experiments' / 'configs' / 'test.py'}"


def run(config, path, **patches):
    """`train.train` alone; `patches` replace names that a step or training uses."""
    with pytest.MonkeyPatch.context() as patch:
        _leave_out_figures(patch)
        for name, value in patches.items():
            modules = (losses, chains, learner, train)
            module = next(module for module in modules if hasattr(module, name))
            patch.setattr(module, name, value)
        train.train(config, path)


def run_main(*arguments):
    """The command line in this process, training without figures."""
    argv = ["main", *map(str, arguments)]
    with flagsaver.flagsaver(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", argv)  # where config_flags looks for overrides
        _leave_out_figures(patch)
        try:
            main.main(main.parse(argv))
        finally:
            flags.FLAGS.unparse_flags()


def _leave_out_figures(patch):
    patch.setattr(train.figures, "figures", lambda config, path: None)
    patch.setattr(train.evaluate, "evaluate", lambda config, path: None)


_WITHOUT_FIGURES = """
import runpy
from experiments import evaluate, figures
figures.figures = evaluate.evaluate = lambda config, path: None
runpy.run_module("experiments.main", run_name="__main__", alter_sys=True)
"""


def start_main(*arguments, figures=True, fault=""):
    """The command line as a process of its own, on one device.

    Without figures, statements of a `fault` may be run before.
    """
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
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
    model = train.build_model(config, (8, 8, 1))
    backbone = jebm.init(jax.random.key(0), model).backbone
    templates = checkpoint_items(train.create_state(config, model, backbone))
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


def rescued_fields(digests):
    """What a rescue changes: its own record, and the factor of the energies' steps."""
    guarded = {f"['train_state']['guard'].{field}" for field in ("rescues", "good")}
    factor = {name for name in digests if "step_size" in name}
    assert len(factor) == 1 and guarded <= digests.keys()
    return guarded | factor
