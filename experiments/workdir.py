"""The directory of a run: its settings, its metrics, and who may continue it."""

import json
import math
import os
import pathlib
from typing import Any

from experiments.command_line import ConfigError

# What may change while a run goes on. Everything else makes it another run.
_FREE = {"train": ("log.", "learning.num_steps", "data.data_dir")}
_FREE["read"] = (*_FREE["train"], "chains.", "seed")  # other samples of one model


def plain(config) -> dict[str, Any]:
    """The configuration as JSON would give it back."""
    return json.loads(config.to_json())


def check_settings(workdir: pathlib.Path, config, purpose: str) -> None:
    """Refuses settings that differ from those of the run in `workdir`.

    Args:
      workdir: may be absent or empty; then everything is allowed.
      config: the configuration asked for.
      purpose: "train" to continue the run, "read" to sample from it.

    Raises:
      ConfigError: naming each field, its value in the run and the one asked for.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"workdir {workdir} is not a directory")
    existing = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"workdir {workdir} cannot be written")
    path = workdir / "config.json"
    if not path.is_file():
        if purpose == "read":
            raise ConfigError(f"no run in {workdir}: train it first, with --mode=train")
        return
    old, new = _flat(json.loads(path.read_text())), _flat(plain(config))
    changed = [
        f"{field} is {old.get(field)} there, {new.get(field)} here"
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field) and not field.startswith(_FREE[purpose])
    ]
    if changed:
        raise ConfigError(
            f"{workdir} holds a run with other settings: {'; '.join(changed)}. "
            "Choose another --workdir, or the settings of that run"
        )


def write_settings(workdir: pathlib.Path, config, spec: dict[str, Any]) -> None:
    """Writes config.json and model.json, and makes the directories for pictures."""
    for name in ("samples", "figures"):
        (workdir / name).mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", plain(config))
    write_json(workdir / "model.json", spec)


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file in one piece: a reader never sees half of it."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=2) + "\n")
    partial.replace(path)


class Metrics:
    """Writes metrics.jsonl and, where TensorFlow is installed, TensorBoard events."""

    def __init__(self, workdir: pathlib.Path, step: int):
        """Opens the file, dropping lines beyond `step`, which will be written anew."""
        path = workdir / "metrics.jsonl"
        lines = [line for line in read_metrics(workdir) if line["step"] <= step]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        self._file = path.open("a")
        self._tensorboard = _tensorboard_writer(workdir)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Appends one line, flushed; JSON has no NaN, so it reads null."""
        plain = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._file.write(json.dumps({"step": step, **plain}) + "\n")
        self._file.flush()
        if self._tensorboard is not None:
            self._tensorboard.write_scalars(step, values)

    def close(self) -> None:
        """Closes the files."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def read_metrics(workdir: pathlib.Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl; a last line cut off by a kill is left out."""
    path = workdir / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")[
        :-1
    ]  # what follows the last newline is partial
    return [json.loads(line) for line in lines]


def _tensorboard_writer(workdir):
    try:
        from clu import metric_writers  # imports TensorFlow
    except ImportError:
        return None
    return metric_writers.SummaryWriter(str(workdir))


def _flat(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.")
    return flat
