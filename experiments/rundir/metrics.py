"""metrics.jsonl and hardware.json: what training_budget has measured and taken."""

import json
import math
import pathlib
from typing import Any

from experiments.errors import ConfigError
from experiments.runtime.files import read_json, write_json, write_text


class Metrics:
    """Writes metrics.jsonl and, where TensorFlow is installed, TensorBoard events."""

    def __init__(self, workdir: pathlib.Path, step: int, rescues: int):
        """Opens the file for a run that goes on from `step`, see `rewind`."""
        self._workdir, self._file = workdir, None
        self.rewind(step, rescues)
        self._tensorboard = _tensorboard_writer(workdir)

    def rewind(self, step: int, rescues: int, rescue: str | None = None) -> None:
        """Drops lines beyond `step`, which will be written anew; adds that of a rescue.

        The lines of earlier rescues stay, wherever they went back to; those of rescues
        beyond the number given, after which a run was killed, will be written anew.
        """
        lines = [
            line
            for line in read_metrics(self._workdir)
            if (line["step"] <= step or "rescue" in line)
            and line.get("rescues", 0) <= rescues
        ]
        if rescue is not None:
            lines.append({"step": step, "rescues": rescues, "rescue": rescue})
        if self._file is not None:
            self._file.close()
        path = self._workdir / "metrics.jsonl"
        write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        self._file = path.open("a")

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends one line, flushed; JSON has no NaN, so it reads null."""
        as_json = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **as_json}) + "\n")
        self._file.flush()
        if self._tensorboard is not None:
            self._tensorboard.write_scalars(step, values)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def read_metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl; a last line cut off by a kill is left out.

    Raises:
      ConfigError: if another line is damaged.
    """
    path = workdir / "metrics.jsonl"
    if not path.is_file():
        return []
    try:
        *lines, _partial = path.read_text().split("\n")
        found = [json.loads(line) for line in lines]
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(found, 1):
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise ConfigError(f"{path} cannot be read: line {number} tells no step")
    return found


def training_budget(workdir: pathlib.Path, config) -> dict[str, Any]:
    """What training took: images, seconds of steps, and hardware where it is known.

    Seconds are those of metrics.jsonl: of steps alone, without compiling, saving,
    drawing and what a rescue threw away.
    """
    images, seconds, last = 0, 0.0, 0
    for line in read_metrics(workdir):
        if "rescue" in line:
            continue
        taken = (line["step"] - last) * config.learning.batch_size
        images, last = images + taken, line["step"]
        if rate := line.get("images_per_second"):
            seconds += taken / rate
    found = {"training_images": images, "training_seconds": seconds}
    file = workdir / "hardware.json"
    if file.is_file():
        found["training_hardware"] = "; ".join(map(str, read_json(file, list)))
    return found


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
