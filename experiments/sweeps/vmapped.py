"""Trains many seeds, settings or data sets of one model in one vmapped program.

A lane is a training of its own: its seed, its images, and its values of some fields of
`learning`. No lane is ever rescued: each is held against the limits of `config.guard`
at every `log.every` steps. A killed run goes on from its last checkpoint.
"""

import contextlib
import json
import pathlib
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from grain.experimental import ZipIterDataset
from tqdm import tqdm

from experiments.data.batches import prefetched, training_batches
from experiments.errors import ConfigError
from experiments.rundir.files import lock
from experiments.rundir.metrics import read_metrics
from experiments.rundir.settings import check_settings, write_settings
from experiments.runtime import parallel
from experiments.runtime.files import read_json, write_text
from experiments.training import learner, monitor, steps
from experiments.training.state import checkpoint_items, restore
from jebm import checkpoints

# Fields of `learning` that may differ between the lanes of one program.
TRACED = (
    "backbone_lr",
    "energy_lr",
    "energy_penalty",
    "gradient_penalty",
    "energy_share",
    "restart_fraction",
)


class Lane(NamedTuple):
    """One of the trainings."""

    images: np.ndarray  # uint8 [N, H, W, C]
    seed: int
    setting: dict[str, float]  # fields among TRACED
    backbone: Any = None  # variables of one that is frozen: "two_stage"


def train_lanes(config, path: pathlib.Path, model, lanes: list[Lane], names: list):
    """Trains all lanes for `learning.num_steps`, on one device.

    Args:
      config: the configuration that they share.
      path: where config.json, model.json (with the lanes' names), metrics.jsonl (with
        a list over lanes for every metric) and checkpoints go.
      model: the model.
      lanes: the trainings.
      names: what tells them from others, values of JSON.

    Returns:
      the state, every leaf with a leading axis over lanes, and the `History`.

    Raises:
      ConfigError: if `path` holds lanes of other names or settings, or another process
        trains there; or if learning is "two_stage" and a lane has no backbone.
    """
    if config.learning.method == "two_stage" and any(
        lane.backbone is None for lane in lanes
    ):
        raise ConfigError(
            "learning.method 'two_stage' needs a trained backbone for every lane"
        )
    check_settings(path, config, "train")
    with lock(path):
        return _train_lanes(config, path, model, lanes, names)


def _train_lanes(config, path, model, lanes, names):
    file, spec = path / "model.json", {"lanes": names}
    if file.is_file() and read_json(file) != spec:
        raise ConfigError(f"{path} holds other lanes: choose another --workdir")
    write_settings(path, config, spec)
    devices = jax.local_devices()[:1]
    fields = dict(config.learning)
    traced = {
        name: jnp.asarray([lane.setting.get(name, fields[name]) for lane in lanes])
        for name in TRACED
    }
    keys = jax.vmap(jax.random.key)(jnp.asarray([lane.seed for lane in lanes]))
    backbones = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(lane.backbone for lane in lanes)
    )

    def lane_learning(values):
        return types.SimpleNamespace(**(fields | values))

    def create(key, values, backbone):
        return learner.create_state(key, lane_learning(values), model, backbone)

    def lane_step(lane, state, images):
        key, values = lane
        step_fn = learner.make_train_step(lane_learning(values), model)
        return step_fn(key, state, images)

    def lane_diagnose(lane, state, images):
        return learner.make_diagnose(model)(lane[0], state, images)

    state = restore(path, jax.vmap(create)(keys, traced, backbones))
    step = int(state.learner.step[0])
    history = History(path, step, len(lanes))
    batches = [training_batches(config, lane.images, lane.seed) for lane in lanes]
    last = config.learning.num_steps
    lanes_batches = ZipIterDataset([lane.dataset(step, last) for lane in batches])
    feed = prefetched(lanes_batches, lambda images: np.stack(images)[None])
    step_fn = parallel.pmap(jax.vmap(lane_step), devices)
    diagnose_fn = parallel.pmap(jax.vmap(lane_diagnose), devices, donate=False)
    state = parallel.replicate(state, devices)
    with (
        contextlib.closing(feed),
        contextlib.closing(history),
        checkpoints.manager(path, config.log.keep) as manager,
        tqdm(initial=step, total=last, unit="step", disable=None) as progress,
    ):
        loop = steps.intervals(
            step_fn, (keys, traced), state, feed, progress, first=step, last=last,
            every=config.log.every,
        )  # fmt: skip
        for step, state, values, batch, _ in loop:
            if step % config.log.diagnose_every == 0 or step == last:
                found = diagnose_fn((keys, traced), state, batch[:, :, :16])
                values |= parallel.unreplicate(found)
            wrong = history.add(step, values, config.guard)
            said = f"{wrong}/{len(lanes)} beyond the limits"
            progress.set_postfix_str(f"{said}, in {path}")
            if progress.disable:
                print(f"{path}: step {step}/{last}: {said}", flush=True)
            if step % config.log.checkpoint_every == 0 or step == last:
                checkpoints.save(
                    manager, step, checkpoint_items(parallel.unreplicate(state))
                )
    return parallel.unreplicate(state), history


def of_lane(tree, i: int):
    """Lane i of a tree whose every leaf has a leading axis over lanes."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[i]), tree)


class History:
    """metrics.jsonl with a list over lanes for every metric."""

    def __init__(self, path, step: int, lanes: int):
        """Opens the file for lanes that go on from `step`; later lines are dropped."""
        self._lines = [x for x in read_metrics(path) if x["step"] <= step]
        self._lanes, self._wrong = lanes, set()
        self._wrong.update(*(self._beyond(line) for line in self._lines))
        text = "".join(json.dumps(line) + "\n" for line in self._lines)
        write_text(path / "metrics.jsonl", text)
        self._file = (path / "metrics.jsonl").open("a")

    def close(self):
        """Closes the file."""
        self._file.close()

    def _beyond(self, line):
        return [i for i, wrong in enumerate(line["wrong"]) if wrong]

    def add(self, step, values, limits) -> int:
        """Adds an interval; returns how many lanes have ever left the limits."""
        wrong = [
            monitor.verdict({k: float(v[i]) for k, v in values.items()}, limits)
            for i in range(self._lanes)
        ]
        lists = {
            k: [float(x) if np.isfinite(x) else None for x in v]
            for k, v in values.items()
        }
        self._lines.append({"step": step, "wrong": wrong} | lists)
        self._file.write(json.dumps(self._lines[-1]) + "\n")
        self._file.flush()
        self._wrong.update(self._beyond(self._lines[-1]))
        return len(self._wrong)

    def lane(self, i):
        """What lane i came to, in numbers as long as they were finite."""
        lines = [
            {k: v[i] for k, v in line.items() if k != "step"} | {"step": line["step"]}
            for line in self._lines
        ]
        wrong = next((line for line in lines if line["wrong"]), None)
        found = {"diverged": wrong and f"step {wrong['step']}: {wrong['wrong']}"}
        for name in _KEPT:
            if values := [x[name] for x in lines if x.get(name) is not None]:
                found[f"largest_{name}"] = max(values, key=abs)
                found[f"last_{name}"] = values[-1]
        return found


_KEPT = (
    *monitor.LIMITS,
    "prior_acceptance",
    "prior_stiffness",
    "posterior_acceptance",
    "posterior_stiffness",
)
