"""config.json: the settings of a run, and which of them may change."""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from experiments.configs import default
from experiments.errors import ConfigError
from experiments.rundir.metrics import read_metrics
from experiments.runtime.files import read_json, write_json

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


def as_json(config) -> dict[str, Any]:
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
    new = dict(flat(as_json(config)))
    # What a run of an older version does not know of was then as it is by default.
    defaults = dict(flat(as_json(default.get_config())))
    old |= {k: defaults[k] for k in new.keys() & defaults.keys() - old.keys()}
    for field in sorted(old.keys() | new.keys()):
        if old.get(field) != new.get(field):
            yield field, old.get(field), new.get(field)


def write_settings(workdir: pathlib.Path, config, spec: dict[str, Any]) -> None:
    """Writes config.json and model.json, and makes the directories for pictures."""
    for name in ("samples", "figures"):
        (workdir / name).mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", as_json(config))
    write_json(workdir / "model.json", spec)


def flat(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts, as ("a.b.c", value)."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
