"""What a run resumes from: its checkpoints."""

from typing import Any

from experiments.errors import ConfigError
from experiments.runs import restore_aloud
from experiments.runtime.files import read_json
from experiments.training import learner
from jebm import checkpoints
from jebm.learning import LearnerState


def restore(path, state: learner.TrainState) -> learner.TrainState:
    """The newest sound checkpoint; `state` itself where there is none."""
    if not checkpoints.steps(path):
        return state
    _check_age(path)
    step, items = restore_aloud(path, checkpoint_items(state))
    checkpoints.set_aside_after(path, step)
    saved = dict(items["train_state"])
    guarded = saved.pop("guard")
    return learner.TrainState(LearnerState(**saved, ema=items["ema"]), guarded)


def _check_age(path):
    """Refuses a run whose training state is that of a version before the learners."""
    file = path / "model.json"
    spec = read_json(file) if file.is_file() else {}
    if "chains" in spec and "name" not in spec["chains"].get("prior", {}):
        raise ConfigError(
            f"{path} was begun by an older version, and training cannot resume from "
            "its state. It can still be sampled, evaluated and used as a backbone; to "
            "train further, start anew in another --workdir"
        )


def checkpoint_items(state: learner.TrainState) -> dict[str, Any]:
    """What is saved of a state, by item of `jebm.checkpoints`."""
    learner = dict(vars(state.learner))
    return {"ema": learner.pop("ema"), "train_state": learner | {"guard": state.guard}}
