"""The loop of a run: steps, metrics, checkpoints, rollbacks, pictures."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

import jebm
from experiments.data.batches import prefetched, training_batches
from experiments.data.loaders import Split
from experiments.errors import Diverged
from experiments.models import active_chains, with_learned_steps
from experiments.options import Experiment
from experiments.rundir import report
from experiments.rundir.metrics import Metrics
from experiments.runs import Run
from experiments.runtime import parallel, stop
from experiments.runtime.files import write_json
from experiments.training import learner, steps
from experiments.training.hooks import Hooks
from experiments.training.learner import TrainState
from experiments.training.monitor import MonitorState, last_good, violations
from experiments.training.screen import progress_bar, show, warn_of_stiffness
from experiments.training.state import checkpoint_items, restore, sums
from jebm import checkpoints

_FEWEST_WALKERS = 20  # effective ones, that log Z is told from
_NUM_DIAGNOSED = 16  # images whose chains are examined


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be trained, and how it may end."""

    experiment: Experiment
    path: pathlib.Path
    model: jebm.Model
    splits: Mapping[str, Split]
    fresh: Callable[[], TrainState]  # the state before the first step
    hooks: Hooks
    requests: stop.Requests  # to stop

    def due(self, step: int, interval: int) -> bool:
        """Says whether something of this interval is due after `step`."""
        return step % interval == 0 or step == self.experiment.learning.num_steps


@dataclasses.dataclass
class _Open:
    """What is open while steps are taken; of several processes one writes."""

    step_fn: Callable
    diagnose_fn: Callable
    follow_fn: Callable | None
    devices: list
    feed: Callable[[int], Any]  # an iterator over the images of the steps from one on
    progress: tqdm
    manager: Any = None
    metrics: Metrics | None = None
    warned: set[str] = dataclasses.field(default_factory=set)


class _Violation(NamedTuple):
    """A step at which training is beyond the limits."""

    step: int
    values: dict[str, float]
    message: str


def run_steps(job: Job, state: TrainState) -> None:
    """Takes the steps that `state` has not seen; logs, saves and draws on the way.

    Raises:
      Diverged: where the monitor gives up; the last good checkpoint is then the newest.
      stop.Stopped: when it was requested and all is saved: after the step in hand, or
        where several processes agree, at the next multiple of `log.every`.
    """
    with job.requests.saving(), _opened(job, state) as opened:
        while (violation := _advance(job, opened, state)) is not None:
            state = _roll_back(job, opened, state.monitor, violation)
            opened.progress.n = int(state.learner.step)


@contextlib.contextmanager
def _opened(job: Job, state: TrainState) -> Iterator[_Open]:
    devices, experiment = parallel.devices(), job.experiment
    num_here = parallel.num_here(devices)
    last = experiment.learning.num_steps
    batches = training_batches(
        experiment, job.splits["train"].images, experiment.seed,
        jax.process_index(), jax.process_count(),
    )  # fmt: skip

    def place(images):
        return parallel.place(parallel.split(images, num_here), devices)

    def feed(first):
        return prefetched(batches.dataset(first, last), place)

    step_fn = learner.make_train_step(experiment.learning, job.model)
    diagnose_fn = learner.make_diagnose(job.model)
    step = int(state.learner.step)
    progress = progress_bar(step, last, silent=not parallel.is_first())
    opened = _Open(
        parallel.pmap(step_fn, devices),
        parallel.pmap(diagnose_fn, devices, donate=False),
        _follow_fn(job, state, devices),
        devices, feed, progress,
    )  # fmt: skip
    with contextlib.ExitStack() as files, progress:
        if parallel.is_first():
            keep = experiment.log.keep
            opened.manager = files.enter_context(checkpoints.manager(job.path, keep))
            opened.metrics = Metrics(job.path, step, int(state.monitor.rollbacks))
            files.enter_context(contextlib.closing(opened.metrics))
        yield opened


def _follow_fn(job, state, devices):
    if not state.walkers:
        return None
    return parallel.pmap(learner.make_follow(job.model), devices)


def _advance(job: Job, opened: _Open, state: TrainState) -> _Violation | None:
    """Takes steps up to the last one, or to where they leave the limits."""
    first, alone = int(state.learner.step), jax.process_count() == 1
    with contextlib.closing(opened.feed(first)) as feed:
        loop = steps.intervals(
            opened.step_fn,
            jax.random.key(job.experiment.seed),
            learner.distribute(state, opened.devices),
            feed,
            opened.progress,
            first=first,
            last=job.experiment.learning.num_steps,
            every=job.experiment.log.every,
            stop=lambda: bool(job.requests and alone),
            follow=opened.follow_fn,
        )
        for interval in loop:
            violation = _finish(job, opened, interval, state.monitor)
            if violation is not None:
                return violation
    return None


def _finish(job, opened, interval, monitor) -> _Violation | None:
    """Checks an interval, in all processes together, and writes what is due."""
    step, saved = interval.step, None
    limits = job.experiment.monitor.limits
    values = _values(job, opened, interval, monitor)
    show(opened.progress, step, values)
    violation = violations(values, limits)
    save = job.due(step, job.experiment.log.checkpoint_every)
    stopping, save = parallel.agree(bool(job.requests), save)
    if save or stopping:
        saved = checkpoint_items(learner.collect(interval.state))
        violation = violation or violations(sums(saved), limits)
    [violated] = parallel.agree(violation is not None)
    if violated:
        elsewhere = "another process has found values beyond the limits"
        return _Violation(step, values, violation or elsewhere)
    with parallel.together():
        if parallel.is_first():
            _write(job, opened, interval, values, saved)
    if stopping:
        raise stop.Stopped(
            f"Stopped at step {step}, which is saved in {job.path}: the same command "
            "goes on from there."
        )
    return None


def _values(job, opened, interval, monitor):
    """Returns the metrics of an interval, as numbers."""
    values = {name: float(value) for name, value in interval.values.items()}
    if values.get("log_z_effective_samples", _FEWEST_WALKERS) < _FEWEST_WALKERS:
        del values["log_z_nats"], values["log_z_error_nats"]  # they would mislead
    if interval.rate is not None:
        batch_size = job.experiment.learning.batch_size
        values["images_per_second"] = interval.rate * batch_size
    if job.due(interval.step, job.experiment.log.diagnose_every):
        per_device = max(1, _NUM_DIAGNOSED // len(opened.devices))
        key, images = jax.random.key(job.experiment.seed), interval.images
        results = opened.diagnose_fn(key, interval.state, images[:, :per_device])
        results = steps.means([results])
        values |= {name: float(value) for name, value in results.items()}
        chains = active_chains(job.model)
        warn_of_stiffness(opened.progress, interval.step, values, chains, opened.warned)
    if job.model.energy is not None:
        values["rollbacks"] = int(monitor.rollbacks)
    return values


def _write(job, opened, interval, values, saved):
    """Writes metrics, and where they are due a checkpoint, pictures and the page."""
    opened.metrics.write(interval.step, values)
    draw = job.due(interval.step, job.experiment.log.sample_every)
    if saved is None and not draw:
        return
    state = interval.state.learner
    model = with_learned_steps(job.model, parallel.unreplicate(state.step_sizes))
    if saved is not None:
        checkpoints.write(opened.manager, interval.step, saved)
        write_json(job.path / "model.json", jebm.to_spec(model))
    if draw:
        params = parallel.unreplicate(state.ema)
        job.hooks.pictures(
            Run(job.path, job.experiment, model, params, interval.step, job.splits)
        )
        report.write(job.path)


def _roll_back(job, opened, monitor, violation) -> TrainState:
    """Returns the state to go on from, the same in all processes."""
    state = job.fresh()
    with parallel.together():
        if parallel.is_first():
            opened.metrics.write(violation.step, violation.values)
            state, message = _last_good_state(job, state, monitor, violation)
            opened.progress.write(message)
            step, rollbacks = int(state.learner.step), int(state.monitor.rollbacks)
            opened.metrics.rewind(step, rollbacks, message)
            opened.manager.reload()
            report.write(job.path)
    return parallel.share(state)


def _last_good_state(job, fresh, monitor, violation):
    """Returns the last good checkpoint, or `fresh`, with one more rollback counted.

    Checkpoints after the last good one are set aside, also where training ends here:
    what is left is good, and model.json has its step sizes.
    """
    step, rollbacks = violation.step, int(monitor.rollbacks)
    interval = job.experiment.log.checkpoint_every
    good = last_good(checkpoints.steps(job.path), step, interval, int(monitor.good))
    checkpoints.set_aside_after(job.path, good)
    state = restore(job.path, fresh)
    model = with_learned_steps(job.model, state.learner.step_sizes)
    write_json(job.path / "model.json", jebm.to_spec(model))
    most = job.experiment.monitor.max_rollbacks
    if job.model.energy is None or rollbacks == most:
        report.write(job.path)
        left = f"checkpoint {good} is sound" if good else "no checkpoint is left"
        raise Diverged(
            f"training diverged by step {step}: {violation.message}, after {rollbacks} "
            f"rollbacks. In {job.path} {left}. Try {_advice(job)}, in another --workdir"
        )
    back, rollbacks = int(state.learner.step), rollbacks + 1
    factor = 0.5**rollbacks
    slower = learner.scale_energy_updates(state.learner, factor)
    monitor = MonitorState(np.int32(rollbacks), np.int32(back))
    return TrainState(slower, monitor, state.walkers), (
        f"Rollback {rollbacks} of at most {most}: {violation.message}, by step {step}. "
        f"Back to step {back} with half the energy learning rate, "
        f"{job.experiment.learning.energy_lr * factor:.3g}."
    )


def _advice(job):
    """Says what may keep the next run from diverging."""
    if job.model.energy is None:
        return "a smaller learning.backbone_lr"
    return (
        "a smaller learning.energy_lr or chains.*.step_size, or a larger "
        "learning.gradient_penalty"
    )
