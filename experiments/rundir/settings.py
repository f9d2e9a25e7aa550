"""config.json: the settings of a run, and which of them may change."""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from experiments.configs import default
from experiments.errors import ConfigError
from experiments.options import Experiment, flat, nested, upgrade
from experiments.rundir.metrics import read_metrics
from experiments.runtime.files import local_path, read_json, short_name, write_json

# What may change while a run goes on: a longer num_steps stretches the decay of the
# learning rates, and another backbone.checkpoint must hold the same, which training
# checks. Everything else makes it another run.
_FREE: dict[str, tuple[str, ...]] = {
    "train": (
        "log.", "eval.", "monitor.", "learning.num_steps", "data.data_dir",
        "data.num_workers", "data.on_corrupt", "backbone.checkpoint", "remat",
    )
}  # fmt: skip
# May also differ when a trained run is read, and is then told by the name of what comes
# out.
_OTHER_SAMPLES = ("chains.", "eval.anomaly.", "seed", "matmul_precision")
_FREE["read"] = _FREE["train"] + _OTHER_SAMPLES
_FREE["sweep"] = _FREE["train"]
# No run with a Gaussian prior reads these; the first of two stages is one.
_OF_ENERGIES = (
    "chains.prior.", "energy.", "learning.energy_", "learning.gradient_penalty",
    "learning.nce_steps", "learning.persistent_", "learning.reinit_probability",
)  # fmt: skip
_PATHS = (
    "data.data_dir", "backbone.checkpoint", "eval.fid.reference", "eval.fid.inception",
)  # fmt: skip


def check_settings(workdir: pathlib.Path, experiment: Experiment, purpose: str) -> None:
    """Refuses settings that differ from those of the run in `workdir`.

    Args:
      workdir: may be absent or empty; then everything is allowed.
      experiment: the settings asked for.
      purpose: "train" to continue the run, "read" to sample from it, "sweep" to
        continue many of one program.

    Raises:
      ConfigError: naming each field, its value in the run and the one asked for.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"workdir {workdir} is not a directory")
    existing = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"workdir {workdir} cannot be written")
    if not (workdir / "config.json").is_file():
        if purpose == "read":
            raise ConfigError(f"no run in {workdir}: train it first, with --mode=train")
        return
    if purpose != "sweep":
        _check_single(workdir)
    read_metrics(workdir)  # damage is told before any work
    free = _FREE[purpose]
    if experiment.prior == "gaussian":
        free += _OF_ENERGIES
    changed = [
        f"{field} is {old} there, {new} here"
        for field, old, new in _changes(workdir, experiment)
        if not field.startswith(free)
    ]
    if changed:
        raise ConfigError(
            f"{workdir} holds a run with other settings: {'; '.join(changed)}. "
            "Choose another --workdir, or the settings of that run"
        )


def _check_single(workdir):
    """Refuses the directory of many runs in one program, `experiments.sweeps`."""
    file = workdir / "model.json"
    if file.is_file() and {"vmapped", "lanes"} & read_json(file).keys():
        raise ConfigError(
            f"{workdir} holds many runs of a sweep, not one: choose another --workdir"
        )


def variant(workdir: pathlib.Path, experiment: Experiment) -> str:
    """Names what `experiment` samples otherwise than the run; "" where nothing differs.

    Pictures of other chains or seeds go to a folder of this name, see `folder_name`:
    those of the run itself are never replaced by what its config.json does not say.
    """
    return ",".join(
        f"{field}={new}"
        for field, _, new in _changes(workdir, experiment)
        if field.startswith(_OTHER_SAMPLES)
    )


def folder_name(workdir: pathlib.Path, variant: str) -> str:
    """Names the folder of a variant; a name that had to be cut is noted in the run.

    overrides.json maps such a name to the whole variant.
    """
    name = short_name(variant)
    file = workdir / "overrides.json"
    if name != variant and variant_of(workdir, name) != variant:
        known = read_json(file) if file.is_file() else {}
        write_json(file, known | {name: variant})
    return name


def variant_of(workdir: pathlib.Path, name: str) -> str:
    """Returns the variant whose folder has this name."""
    file = workdir / "overrides.json"
    return read_json(file).get(name, name) if file.is_file() else name


def overrides(workdir: pathlib.Path, experiment: Experiment) -> list[str]:
    """Says in words what `experiment` has otherwise than the run, a field each."""
    return [
        f"{field}={new} ({old} in the run)"
        for field, old, new in _changes(workdir, experiment)
    ]


def read_settings(workdir: pathlib.Path) -> dict[str, Any]:
    """Reads the dict that config.json of a run holds, by the names of today."""
    return upgrade(read_json(workdir / "config.json"))


def write_settings(
    workdir: pathlib.Path, experiment: Experiment, spec: dict[str, Any]
) -> None:
    """Writes config.json and model.json, and makes the directories for pictures.

    Paths are written whole, so that the run can be read from anywhere.
    """
    for name in ("samples", "figures"):
        (workdir / name).mkdir(parents=True, exist_ok=True)
    leaves = dict(flat(experiment.to_dict()))
    write_json(workdir / "config.json", nested(_whole_paths(leaves)))
    write_json(workdir / "model.json", spec)


def _changes(workdir, experiment) -> Iterator[tuple[str, Any, Any]]:
    old = _whole_paths(dict(flat(read_settings(workdir))))
    new = _whole_paths(dict(flat(experiment.to_dict())))
    # What a run of an older version does not know of was then as it is by default.
    defaults = dict(flat(json.loads(default.get_config().to_json())))
    old |= {k: defaults[k] for k in new.keys() & defaults.keys() - old.keys()}
    for field in sorted(old.keys() | new.keys()):
        if old.get(field) != new.get(field):
            yield field, old.get(field), new.get(field)


def _whole_paths(leaves):
    """Makes the paths in a config's leaves absolute; leaves addresses as they are."""
    paths = {
        name: str(local_path(name, value).absolute())
        for name in _PATHS
        if isinstance(value := leaves.get(name), str) and "://" not in value
    }
    return leaves | paths
