"""Trains many seeds, settings or data sets of one model in one vmapped program.

Each is a run of its own: its seed, its images, and its values of some fields of
`learning`. None is ever rolled back: each is held against the limits of
`config.monitor` at every `log.every` steps. A killed program goes on from its last
checkpoint.
"""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from grain.experimental import ZipIterDataset

import jebm
from experiments.data.batches import prefetched, training_batches
from experiments.data.loaders import Split
from experiments.data.sources import Streamed
from experiments.errors import ConfigError
from experiments.models import with_learned_steps
from experiments.options import Experiment
from experiments.rundir import data_note
from experiments.rundir.files import lock
from experiments.rundir.metrics import Metrics, read_metrics
from experiments.rundir.settings import check_settings, write_settings
from experiments.runs import Run
from experiments.runtime import parallel
from experiments.runtime.files import read_json
from experiments.training import learner, steps
from experiments.training.monitor import violations
from experiments.training.screen import progress_bar
from experiments.training.state import checkpoint_items, restore
from jebm import checkpoints
from jebm.learning import Limits

# Fields of `learning` that may differ between the runs of one program.
TRACED = (
    "backbone_lr",
    "energy_lr",
    "energy_penalty",
    "gradient_penalty",
    "energy_grad_scale",
    "reinit_probability",
)


class VmappedRun(NamedTuple):
    """One of the runs."""

    images: np.ndarray | Streamed  # uint8 [N, H, W, C]
    seed: int
    setting: dict[str, float]  # fields among TRACED
    backbone: Any = None  # variables of one that is frozen: "two_stage"


def train_vmapped(
    experiment: Experiment,
    path: pathlib.Path,
    model: jebm.Model,
    runs: list[VmappedRun],
    names: list,
    splits: Mapping[str, Split],
):
    """Trains all runs for `learning.num_steps`, on one device.

    Args:
      experiment: the options that they share.
      path: where config.json, model.json (with the runs' names), data.json,
        metrics.jsonl (with a list over runs for every metric) and checkpoints go.
      model: the model.
      runs: what is trained.
      names: what distinguishes them, values of JSON.
      splits: of the data that the images of the runs are of.

    Returns:
      the state, every leaf with a leading axis over runs, and the `History`.

    Raises:
      ConfigError: if `path` holds runs of other names or settings, or another process
        trains there; or if learning is "two_stage" and a run has no backbone.
    """
    if experiment.learning.method == "two_stage" and any(
        run.backbone is None for run in runs
    ):
        raise ConfigError(
            "learning.method 'two_stage' needs a trained backbone for every run"
        )
    check_settings(path, experiment, "sweep")
    with lock(path):
        _begin(experiment, path, names)
        return _train(experiment, path, model, runs, splits)


def _begin(experiment, path, names):
    file, spec = path / "model.json", {"vmapped": names}
    if file.is_file():
        existing = read_json(file)
        if existing.get("vmapped", existing.get("lanes")) != names:
            raise ConfigError(f"{path} holds other runs: choose another --workdir")
    write_settings(path, experiment, spec)


def _train(experiment, path, model, runs, splits):
    log, last = experiment.log, experiment.learning.num_steps
    keyed, state, step_fn, diagnose_fn = _program(experiment.learning, model, runs)
    state = restore(path, state)
    step = int(state.learner.step[0])
    _note_data(experiment, path, splits, step)
    history = History(path, step, len(runs), experiment.monitor.limits)
    batches = [training_batches(experiment, run.images, run.seed) for run in runs]
    batches = ZipIterDataset([each.dataset(step, last) for each in batches])
    feed = prefetched(batches, lambda images: np.stack(images)[None])
    state = parallel.replicate(state, jax.local_devices()[:1])
    with (
        contextlib.closing(history),
        contextlib.closing(feed),
        checkpoints.manager(path, log.keep) as manager,
        progress_bar(step, last) as progress,
    ):
        loop = steps.intervals(
            step_fn, keyed, state, feed, progress, first=step, last=last,
            every=log.every,
        )  # fmt: skip
        for step, state, values, batch, _ in loop:
            if step % log.diagnose_every == 0 or step == last:
                results = diagnose_fn(keyed, state, batch[:, :, :16])
                values |= parallel.unreplicate(results)
            violated = history.add(step, values)
            message = f"{violated}/{len(runs)} beyond the limits"
            progress.set_postfix_str(f"{message}, in {path}")
            if progress.disable:
                print(f"{path}: step {step}/{last}: {message}", flush=True)
            if step % log.checkpoint_every == 0 or step == last:
                items = checkpoint_items(parallel.unreplicate(state))
                checkpoints.write(manager, step, items)
    return parallel.unreplicate(state), history


def _note_data(experiment, path, splits, step):
    """Says how the images have changed, and notes which are trained on from here."""
    if step:
        data_note.warn(path, experiment.data, splits)
    if step < experiment.learning.num_steps:
        data_note.note(path, experiment.data, splits, step)


def _program(learning, model, runs):
    """Returns what steps are given, the first state, and the step and diagnosis."""
    traced = {
        name: jnp.asarray(
            [run.setting.get(name, getattr(learning, name)) for run in runs]
        )
        for name in TRACED
    }
    keys = jax.vmap(jax.random.key)(jnp.asarray([run.seed for run in runs]))
    backbones = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(run.backbone for run in runs)
    )

    def create(key, values, backbone):
        return learner.create_state(key, learning.traced(values), model, backbone)

    def step_of_one(keyed, state, images):
        key, values = keyed
        step_fn = learner.make_train_step(learning.traced(values), model)
        return step_fn(key, state, images)

    def diagnose_one(keyed, state, images):
        return learner.make_diagnose(model)(keyed[0], state, images)

    pmap = functools.partial(parallel.pmap, devices=jax.local_devices()[:1])
    return (
        (keys, traced),
        jax.vmap(create)(keys, traced, backbones),
        pmap(jax.vmap(step_of_one)),
        pmap(jax.vmap(diagnose_one), donate=False),
    )


def of_run(tree: Any, i: int) -> Any:
    """Returns run i of a tree whose every leaf has a leading axis over runs."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[i]), tree)


def as_run(
    experiment: Experiment,
    path: pathlib.Path,
    model: jebm.Model,
    state: Any,
    i: int,
    seed: int,
    splits: Mapping[str, Split],
) -> Run:
    """Returns run i of a trained program, with its seed, as one that can be measured.

    Args:
      experiment, path, model, splits: of `train_vmapped`, which returned `state`.
      state: the state of all runs.
      i: the run.
      seed: its seed.
    """
    learned, params = of_run((state.learner.step_sizes, state.learner.ema), i)
    own, step = dataclasses.replace(experiment, seed=seed), int(state.learner.step[i])
    return Run(path, own, with_learned_steps(model, learned), params, step, splits)


class History:
    """metrics.jsonl with a list over runs for every metric."""

    def __init__(self, path: pathlib.Path, step: int, num_runs: int, limits: Limits):
        """Opens the file for runs that go on from `step`; later lines are dropped."""
        self._metrics = Metrics(path, step)
        self._lines = read_metrics(path)
        self._num_runs, self._limits = num_runs, limits
        self._violated = {i for line in self._lines for i in _violating(line)}

    def close(self) -> None:
        """Closes the file."""
        self._metrics.close()

    def add(self, step: int, values: dict[str, np.ndarray]) -> int:
        """Adds an interval; returns how many runs have ever left the limits."""
        lists = {name: np.asarray(value).tolist() for name, value in values.items()}
        each = [{k: float(v[i]) for k, v in lists.items()} for i in self._runs]
        lists["violations"] = [violations(one, self._limits) for one in each]
        self._metrics.write(step, lists)
        self._lines.append({"step": step} | lists)
        self._violated.update(_violating(self._lines[-1]))
        return len(self._violated)

    def of_run(self, i: int) -> dict[str, Any]:
        """Returns what run i came to, in numbers as long as they were finite."""
        lines = [
            {k: v[i] for k, v in line.items() if k != "step"} | {"step": line["step"]}
            for line in self._lines
        ]
        violated = next((line for line in lines if line["violations"]), None)
        results = {
            "diverged": violated
            and f"step {violated['step']}: {violated['violations']}"
        }
        for name in _KEPT:
            values = [line.get(name) for line in lines]
            if values := [v for v in values if v is not None and np.isfinite(v)]:
                results[f"largest_{name}"] = max(values, key=abs)
                results[f"last_{name}"] = values[-1]
        return results

    @property
    def _runs(self):
        return range(self._num_runs)


def _violating(line):
    return [i for i, message in enumerate(line["violations"]) if message]


_KEPT = (
    *Limits._fields,
    "prior_step_size",
    "prior_acceptance_rate",
    "prior_acceptance",
    "prior_stiffness",
    "posterior_acceptance",
    "posterior_stiffness",
)
