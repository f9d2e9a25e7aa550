"""Trains a run: checks, the backbone of two stages, the state, and then the loop."""

import contextlib
import functools
import pathlib

import jax

import jebm
from experiments.data import datasets
from experiments.data.batches import training_batches
from experiments.data.loaders import Split, Unprepared
from experiments.errors import ConfigError
from experiments.models import build_model, with_learned_steps
from experiments.options import Data, Experiment
from experiments.rundir import data_note
from experiments.rundir.files import lock, naming
from experiments.rundir.metrics import add_hardware
from experiments.rundir.settings import check_settings, write_settings
from experiments.runtime import parallel, stop
from experiments.training.hooks import Hooks
from experiments.training.learner import TrainState, create_state
from experiments.training.loop import Job, run_steps
from experiments.training.screen import print_overview
from experiments.training.state import restore
from experiments.training.two_stage import check_backbone, load_backbone


def train(experiment: Experiment, path: pathlib.Path, hooks: Hooks = Hooks()) -> None:
    """Trains the run in `path`, from its newest checkpoint if it has one.

    Of several processes the first alone reads and writes `path`, and calls the hooks.

    Raises:
      ConfigError: for what cannot be trained, before any work.
      stop.Stopped: when asked to by SIGTERM or SIGINT; what was learned is saved.
    """
    with (
        stop.Requests() as requests,
        naming(path),
        contextlib.ExitStack() as held,
    ):
        with parallel.together():
            model, splits = _prepare(experiment, path)
        backbone = None
        if experiment.learning.method == "two_stage":
            train_first = functools.partial(train, hooks=hooks)
            backbone = load_backbone(experiment, path, model, train_first)
        key = jax.random.key(experiment.seed)
        fresh = functools.partial(
            create_state, key, experiment.learning, model, backbone,
            experiment.log.num_walkers,
        )  # fmt: skip
        with parallel.together():
            state = fresh()
            print_overview(model, state.learner.params)
            if parallel.is_first():
                held.enter_context(lock(path))
                state = restore(path, state)
                check_backbone(experiment, path, state.learner.params, backbone)
        state = parallel.share(state)
        if _begin(experiment, path, model, splits, state):
            run_steps(
                Job(experiment, path, model, splits, fresh, hooks, requests), state
            )
        if parallel.is_first():
            hooks.end(experiment, path)
            print(f"Look at {path / 'report.html'}")


def _prepare(experiment, path):
    """Refuses what cannot be trained; returns the model and the splits of the data."""
    num_devices = len(parallel.devices())
    batch_size = experiment.learning.batch_size
    if batch_size % num_devices:
        raise ConfigError(
            f"learning.batch_size must be a multiple of the {num_devices} devices, got "
            f"{batch_size}"
        )
    if experiment.log.num_walkers % num_devices:
        raise ConfigError(
            f"log.num_walkers must be a multiple of the {num_devices} devices, got "
            f"{experiment.log.num_walkers}"
        )
    splits = _load(experiment.data)
    images = splits["train"].images
    training_batches(experiment, images, experiment.seed)  # refuses too few images
    model = build_model(experiment, images.shape[1:])
    if parallel.is_first():
        check_settings(path, experiment, "train")
    return model, splits


def _load(data: Data) -> dict[str, Split]:
    """Loads the splits; where they are not there, made-up images are proposed."""
    try:
        return datasets.load(data)
    except Unprepared as error:
        raise ConfigError(
            f"{error}, or try the configuration on made-up images with "
            "--config.data.name=fake and another --workdir"
        ) from error


def _begin(experiment, path, model, splits, state: TrainState) -> bool:
    """Says where training begins, and writes the settings; False: there is no step."""
    first, last = int(state.learner.step), experiment.learning.num_steps
    if first:
        print(f"Resuming {path} from step {first}.")
        if parallel.is_first():
            data_note.warn(path, experiment.data, splits)
    if first > last:
        raise ConfigError(
            f"{path} has been trained for {first} steps already, more than the "
            f"learning.num_steps of {last}"
        )
    with parallel.together():
        if parallel.is_first():
            sampled = with_learned_steps(model, state.learner.step_sizes)
            write_settings(path, experiment, jebm.to_spec(sampled))
    if first == last:
        print(f"{path} is trained already, for {first} steps.")
        return False
    if model.energy is not None:
        print(
            "gap: energy of prior samples minus that of posterior samples, in nats; "
            "sound runs keep it within a few nats."
        )
    with parallel.together():
        if parallel.is_first():
            add_hardware(path, parallel.hardware())
            data_note.note(path, experiment.data, splits, first)
    return True
