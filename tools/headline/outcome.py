"""What comes of a run that has had its time: pictures, numbers, and what they cost."""

import pathlib
import statistics
import subprocess
import sys
from typing import Any

import jax

import jebm
from experiments import options
from experiments.errors import ConfigError
from experiments.options import Experiment
from experiments.rundir.metrics import read_metrics
from experiments.rundir.settings import read_settings
from experiments.runtime import compilation, parallel
from experiments.runtime.files import read_json
from jebm import checkpoints
from tools.headline import pack, roofline


def draw_and_measure(run: pathlib.Path) -> None:
    """Draws samples of a run and measures it, in a process that ends with it.

    A run that training has measured at its end is left as it is.

    Raises:
      ConfigError: if there is no checkpoint yet, or the process ends with an error.
    """
    if not checkpoints.steps(run):
        raise ConfigError(f"{run} has no checkpoint yet: give it more --minutes")
    file = run / "eval.json"
    if file.is_file() and read_json(file).get("step") == checkpoints.steps(run)[-1]:
        return
    code = subprocess.call([sys.executable, "-m", "tools.headline.measure", str(run)])
    if code:
        raise ConfigError(f"measuring {run} ended with exit code {code}")


def keep(run: pathlib.Path, kept: pathlib.Path, seconds: float) -> dict[str, Any]:
    """Packs a run, with what it cost; returns what contents.json holds.

    Args:
      run: the directory of the run.
      kept: the folder to fill.
      seconds: of wall time that training has taken.
    """
    experiment = options.read(read_settings(run))
    compilation.set_precision(experiment.matmul_precision)
    model, _ = jebm.load(run)
    step = checkpoints.steps(run)[-1]
    found = {"step": step, "training_seconds": seconds, **cost(experiment, model, run)}
    return pack.pack(run, kept, found)


def cost(
    experiment: Experiment, model: jebm.Model, run: pathlib.Path
) -> dict[str, Any]:
    """Returns the devices of here, how fast the run went on them, and their peak.

    A share is None where no interval of the run was timed.
    """
    device, num = jax.devices()[0], jax.device_count()
    rate = images_a_second(run)
    flops = roofline.step_flops(experiment.learning, model)
    peaks = {name: roofline.peak(name) for name in ("float32", "bfloat16")}
    used = None if rate is None else flops * rate / experiment.learning.batch_size
    return {
        "hardware": parallel.hardware(),
        "device_kind": device.device_kind,
        "platform": device.platform,
        "num_devices": num,
        "jax": jax.__version__,
        "matmul_precision": experiment.matmul_precision,
        "images_per_second": rate,
        "flops_per_step": flops,
        "flops_per_second": used,
        "peak_flops_per_second": {name: peak * num for name, peak in peaks.items()},
        "share_of_peak": {
            name: None if used is None else used / (peak * num)
            for name, peak in peaks.items()
        },
    }


def images_a_second(run: pathlib.Path) -> float | None:
    """Returns the median of the intervals of metrics.jsonl; None if none was timed."""
    rates = [line.get("images_per_second") for line in read_metrics(run)]
    known = [rate for rate in rates if rate is not None]
    return statistics.median(known) if known else None
