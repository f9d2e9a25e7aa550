"""Trains, samples and draws one experiment.

    python -m experiments.main --config=experiments/configs/digits.py

All the work is in the module that the mode names; this one reads the command line. As
a script, `python experiments/main.py`, it does the same.
"""

import functools
import io
import pathlib
import sys
from collections.abc import Callable

if not __package__:  # as a script: its folder is where modules are looked for
    sys.path[0] = str(pathlib.Path(__file__).resolve().parents[1])

from absl import app, flags, logging
from ml_collections import config_flags

from experiments import command_line, options
from experiments.drawing import figures, samples
from experiments.errors import USER_ERRORS, ConfigError
from experiments.evaluation import evaluate, score
from experiments.evaluation.registry import create
from experiments.models import stages
from experiments.options import Experiment
from experiments.rundir import of_run
from experiments.runtime import compilation, parallel, stop
from experiments.runtime.files import local_path
from experiments.training import train
from experiments.training.hooks import Hooks


def finish(experiment: Experiment, path: pathlib.Path) -> None:
    """Draws and measures a run that is trained."""
    figures.figures(experiment, path)
    evaluate.evaluate_if_possible(experiment, path)


HOOKS = Hooks(pictures=samples.draw_progress, end=finish)

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="File of experiments/configs.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Default: runs/NAME_OF_THE_CONFIG.")
_MODE = flags.DEFINE_enum("mode", "train", list(command_line.MODES), "What to do.")
_IMAGES = flags.DEFINE_string("images", None, "Folder of images, for --mode=score.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of process 0, for several; auto on a TPU pod or SLURM.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Number of this process, from 0."
)


def main(
    argv: list[str],
    hooks: Hooks = HOOKS,
    stopped: Callable[[stop.Stopped], None] = print,
) -> None:
    """Runs the mode on the configuration; training calls the hooks.

    `stopped` is called when training was asked to stop, and has.
    """
    del argv  # its flags are parsed, and it may hold nothing else
    if isinstance(sys.stdout, io.TextIOWrapper):  # for names of files that are no text
        sys.stdout.reconfigure(errors="backslashreplace")
    if (_MODE.value == "score") != (_IMAGES.value is not None):
        sys.exit("error: --mode=score and --images=FOLDER go together")
    file = config_flags.get_config_filename(flags.FLAGS["config"])
    compilation.enable_compilation_cache()
    logging.set_verbosity(logging.WARNING)  # libraries speak up only when it matters
    try:
        workdir = local_path("workdir", _WORKDIR.value or default_workdir(file))
        experiment = options.read(_CONFIG.value)
        compilation.set_precision(experiment.matmul_precision)
        parallel.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        with parallel.ending_together():
            if _MODE.value == "train" or parallel.is_first():
                run(_MODE.value, experiment, workdir, hooks, _IMAGES.value)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    except stop.Stopped as request:
        stopped(request)


def run(
    mode: str,
    experiment: Experiment,
    path: pathlib.Path,
    hooks: Hooks,
    images: str | None = None,
) -> None:
    """Does what `mode` says, of `command_line.MODES`, in the run of `path`.

    `images` is the folder that "score" scores.
    """
    if mode == "train":
        for stage in stages(experiment):
            create(stage)  # refuses what could not be measured, before any training
        train.train(experiment, path, hooks)
    elif mode == "eval":
        evaluate.evaluate(experiment, path)
    elif mode == "sample":
        samples.sample(experiment, path)
    elif mode == "figures":
        figures.figures(experiment, path)
    elif images is not None:
        score.score(experiment, path, local_path("images", images))
    if mode != "train":  # which says so itself, of each stage
        print(f"Look at {path / 'report.html'}")


def with_settings_of_run(argv: list[str]) -> list[str]:
    """Returns the arguments with the config of the run in WORKDIR, if a run is read.

    Says which settings of the config given are others than those of the run.

    Raises:
      ConfigError: if there is no run, and no config either, or it cannot be read.
    """
    mode, file, workdir = (
        command_line.value_of(name, argv) for name in ("mode", "config", "workdir")
    )
    directory = workdir or (file and default_workdir(file))
    if mode in (None, "train") or not directory:
        return argv
    path = local_path("workdir", directory)
    if not (path / "config.json").is_file():
        if file is None:
            raise ConfigError(f"no run in {path}: train it first, with --config=FILE")
        return argv
    of_run.get_config(str(path))  # told by a sentence here, below by absl's trace
    if file and (others := of_run.differing(command_line.config_of(file), path)):
        print(f"Using the settings of {path}. {file} differs in {', '.join(others)}.")
    config = f"--config={of_run.__file__}:{path}"
    rest = command_line.without("config", command_line.without("workdir", argv))
    return [rest[0], config, f"--workdir={path}", *rest[1:]]


def default_workdir(file: str) -> str:
    """Returns where a run of a config file is kept."""
    return f"runs/{pathlib.Path(file).stem}"


parse = functools.partial(
    command_line.parse,
    describe=command_line.help_text,
    settle=with_settings_of_run,
)

if __name__ == "__main__":
    app.run(functools.partial(main, stopped=stop.leave), flags_parser=parse)
