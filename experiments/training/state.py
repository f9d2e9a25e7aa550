"""What a run resumes from: its checkpoints."""

import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.errors import ConfigError
from experiments.runs import restore_aloud
from experiments.runtime.files import read_json
from experiments.training.learner import TrainState
from experiments.training.monitor import MonitorState
from jebm import checkpoints
from jebm.learning import LearnerState

_SAVED_STEPS = {"prior": "step_size", "posterior": "posterior_step_size"}


class _SavedMonitor(NamedTuple):
    """The monitor's state by the names of the first version.

    The digests of a checkpoint name every leaf with its path: a dict would have others.
    """

    rescues: jax.Array
    good: jax.Array


def checkpoint_items(state: TrainState) -> dict[str, Any]:
    """Returns what is saved of a state, by item of `jebm.checkpoints`.

    The names in the file are those of the first version, so that old runs resume.
    """
    learner = dict(vars(state.learner))
    learner |= {_SAVED_STEPS[k]: v for k, v in learner.pop("step_sizes").items()}
    monitor = _SavedMonitor(*state.monitor)
    items = {"ema": learner.pop("ema"), "train_state": learner | {"guard": monitor}}
    return items | ({"walkers": state.walkers} if state.walkers else {})


def restore(path: pathlib.Path, state: TrainState) -> TrainState:
    """Reads the newest sound checkpoint; returns `state` itself where there is none."""
    if not checkpoints.steps(path):
        return state
    _check_age(path)
    templates = checkpoint_items(state)
    templates.pop("walkers", None)
    step, items = restore_aloud(path, templates)
    checkpoints.set_aside_after(path, step)
    saved = dict(items["train_state"])
    monitor = saved.pop("guard")
    steps = {k: saved.pop(v) for k, v in _SAVED_STEPS.items() if v in saved}
    return TrainState(
        LearnerState(**saved, ema=items["ema"], step_sizes=steps),
        MonitorState(*monitor),
        _restore_walkers(path, step, state.walkers),
    )


def _restore_walkers(path, step, fresh):
    """Reads the walkers; returns the `fresh` ones if none can be read."""
    if not fresh or not (path / "checkpoints" / str(step) / "walkers").is_dir():
        return fresh
    try:
        return checkpoints.restore(path, {"walkers": fresh}, step)[1]["walkers"]
    except checkpoints.CorruptCheckpointError as error:
        number = f"log.num_walkers={len(fresh.tilt)}"
        print(f"warning: {error}; the walkers of log Z start again ({number})")
        return fresh


def sums(items: dict[str, Any]) -> dict[str, float]:
    """Sums each item of a checkpoint: finite where all that it holds is."""
    return {
        f"checkpoint's {name}": float(
            sum(np.sum(leaf, dtype=np.float64) for leaf in jax.tree.leaves(item))
        )
        for name, item in items.items()
    }


def _check_age(path):
    """Refuses a run whose training state is that of a version before the learners."""
    file = path / "model.json"
    spec = read_json(file) if file.is_file() else {}
    if "chains" in spec and "name" not in spec["chains"].get("prior", {}):
        raise ConfigError(
            f"an older version began {path}, and training cannot resume from its "
            "state. You can still sample and evaluate the run, and use it as a "
            "backbone. To train further, start again in another --workdir"
        )
