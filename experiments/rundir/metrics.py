"""metrics.jsonl and hardware.json: what training has measured, and on what hardware."""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, TextIO

from experiments.errors import ConfigError
from experiments.options import Experiment
from experiments.runtime.files import read_json, write_json, write_text

# Keys of older versions.
_RENAMED = {"rescue": "rollback", "rescues": "rollbacks", "wrong": "violations"}


class Metrics:
    """Writes metrics.jsonl and, where TensorFlow is installed, TensorBoard events."""

    def __init__(self, workdir: pathlib.Path, step: int, rollbacks: int = 0):
        """Opens the file for a run that goes on from `step`, see `rewind`."""
        self._workdir = workdir
        self._file: TextIO | None = None
        self.rewind(step, rollbacks)
        self._tensorboard = _tensorboard_writer(workdir)

    def rewind(self, step: int, rollbacks: int, message: str | None = None) -> None:
        """Drops lines beyond `step`, which will be written again; adds a rollback's.

        The lines of earlier rollbacks stay, wherever they went back to; those of
        rollbacks beyond the number given, after which a run was killed, will be written
        again.
        """
        lines = [
            line
            for line in read_metrics(self._workdir)
            if (line["step"] <= step or "rollback" in line)
            and line.get("rollbacks", 0) <= rollbacks
        ]
        if message is not None:
            lines.append({"step": step, "rollbacks": rollbacks, "rollback": message})
        if self._file is not None:
            self._file.close()
        path = self._workdir / "metrics.jsonl"
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        self._file = path.open("a")

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Appends one line of numbers or lists of them, and flushes it.

        JSON has no NaN: what is not finite reads null.
        """
        assert self._file is not None
        line = {"step": step} | {k: _as_json(v) for k, v in values.items()}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._tensorboard is not None:
            scalars = {k: v for k, v in values.items() if not isinstance(v, list)}
            self._tensorboard.write_scalars(step, scalars)

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def _as_json(value):
    if isinstance(value, list):
        return [_as_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the lines of metrics.jsonl; leaves out a last one cut off by a kill.

    Raises:
      ConfigError: if another line is damaged.
    """
    path = workdir / "metrics.jsonl"
    if not path.is_file():
        return []
    try:
        *lines, _partial = path.read_text().split("\n")
        values = [json.loads(line) for line in lines]
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(values, 1):
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise ConfigError(f"{path} cannot be read: line {number} has no step")
    return [{_RENAMED.get(k, k): v for k, v in line.items()} for line in values]


def training_budget(workdir: pathlib.Path, experiment: Experiment) -> dict[str, Any]:
    """Returns what training took: images, seconds of steps, and the known hardware.

    Seconds are those of metrics.jsonl: of steps alone, without compiling, saving,
    drawing and what a rollback threw away.
    """
    images, seconds, last = 0, 0.0, 0
    for line in read_metrics(workdir):
        if "rollback" in line:
            continue
        taken = (line["step"] - last) * experiment.learning.batch_size
        images, last = images + taken, line["step"]
        if rate := line.get("images_per_second"):
            seconds += taken / rate
    budget: dict[str, Any] = {"training_images": images, "training_seconds": seconds}
    file = workdir / "hardware.json"
    if file.is_file():
        budget["training_hardware"] = "; ".join(map(str, read_json(file, list)))
    return budget


def add_hardware(workdir: pathlib.Path, hardware: str) -> None:
    """Writes down what a run trains on: hardware.json, a list, for it may move."""
    file = workdir / "hardware.json"
    known = read_json(file, list) if file.is_file() else []
    if hardware not in known:
        write_json(file, [*known, hardware])


def _tensorboard_writer(workdir):
    try:
        from clu import metric_writers  # imports TensorFlow
    except ImportError:
        return None
    return metric_writers.SummaryWriter(str(workdir))
