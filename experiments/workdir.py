"""The directory of a run: its settings, its metrics, and who may continue it."""

import contextlib
import fcntl
import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jebm
from experiments.command_line import ConfigError
from experiments.configs import default
from jebm import checkpoints

# What may change while a run goes on (a longer num_steps stretches the decay of the
# learning rates). Everything else makes it another run.
_FREE = {
    "train": (
        "log.", "eval.", "guard.", "learning.num_steps", "data.data_dir",
        "data.num_workers", "remat",
    )
}  # fmt: skip
# May also differ when a trained run is read, and is then told by the name of what comes
# out.
_OTHER_SAMPLES = ("chains.", "eval.anomaly.", "seed", "matmul_precision")
_FREE["read"] = _FREE["train"] + _OTHER_SAMPLES


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
    read_metrics(workdir)  # damage is told before any work
    changed = [
        f"{field} is {old} there, {new} here"
        for field, old, new in _changes(path, config)
        if not field.startswith(_FREE[purpose])
    ]
    if changed:
        raise ConfigError(
            f"{workdir} holds a run with other settings: {'; '.join(changed)}. "
            "Choose another --workdir, or the settings of that run"
        )


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
    """Makes `workdir` and holds it: two runs in one directory would mix their files.

    The system lets go of a process that has died, however that was.

    Raises:
      ConfigError: if another process holds it.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another process trains in {workdir}: wait for it, or choose another "
                "--workdir"
            ) from None
        yield


@contextlib.contextmanager
def naming(workdir: pathlib.Path) -> Iterator[None]:
    """Errors of the system name a place, which that of a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(workdir)) from error


def variant(workdir: pathlib.Path, config) -> str:
    """Names what `config` samples otherwise than the run; "" where nothing differs.

    Pictures of other chains or seeds go to a folder of this name: those of the run
    itself are never replaced by what its config.json does not say.
    """
    return ",".join(
        f"{field}={new}"
        for field, _, new in _changes(workdir / "config.json", config)
        if field.startswith(_OTHER_SAMPLES)
    )


def _changes(path, config):
    old = dict(flat(read_json(path)))
    new = dict(flat(plain(config)))
    # What a run of an older version does not know of was then as it is by default.
    defaults = dict(flat(plain(default.get_config())))
    old |= {k: defaults[k] for k in new.keys() & defaults.keys() - old.keys()}
    for field in sorted(old.keys() | new.keys()):
        if old.get(field) != new.get(field):
            yield field, old.get(field), new.get(field)


def write_settings(workdir: pathlib.Path, config, spec: dict[str, Any]) -> None:
    """Writes config.json and model.json, and makes the directories for pictures."""
    for name in ("samples", "figures"):
        (workdir / name).mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", plain(config))
    write_json(workdir / "model.json", spec)


def write_model(
    workdir: pathlib.Path, spec: dict[str, Any], params: jebm.Params, step: int = 0
) -> None:
    """Makes a directory that `jebm.load` reads: one checkpoint and model.json."""
    with checkpoints.manager(workdir, keep=1) as manager:
        checkpoints.save(manager, step, {"ema": params})
    write_json(workdir / "model.json", spec)  # last: now it can be loaded


def read_json(path: pathlib.Path, kind: type = dict) -> Any:
    """Reads what `write_json` has written, a dict or a list as `kind` says.

    Raises:
      ConfigError: if the file is damaged, or another's.
    """
    try:
        value = json.loads(path.read_text())
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, kind):
        raise ConfigError(f"{path} cannot be read: it holds no {kind.__name__}")
    return value


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file in one piece."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file in one piece: neither a reader nor a kill sees half of it."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


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


def training(workdir: pathlib.Path, config) -> dict[str, Any]:
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


def flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts, as ("a.b.c", value)."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
