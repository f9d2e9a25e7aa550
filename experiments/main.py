"""Trains, samples and draws one experiment.

    python -m experiments.main --config=experiments/configs/digits.py

All the work is in the module that the mode names; this one reads the command line.
"""

import functools
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from experiments import command_line
from experiments.drawing import figures, samples
from experiments.errors import USER_ERRORS
from experiments.evaluation import evaluate, score
from experiments.runtime import compilation, parallel, stop
from experiments.training import train

MODES = {  # told in command_line.MODES
    "train": train.train,
    "eval": evaluate.evaluate,
    "sample": samples.sample,
    "figures": figures.figures,
    "score": lambda config, path: score.score(config, path, _IMAGES.value),
}

_CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="File of experiments/configs.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Default: runs/NAME_OF_THE_CONFIG.")
_MODE = flags.DEFINE_enum("mode", "train", list(MODES), "What to do.")
_IMAGES = flags.DEFINE_string("images", None, "Folder of images, for --mode=score.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of process 0 of several; auto on a TPU pod or SLURM.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this one is.")


def main(argv: list[str]) -> None:
    """Runs the mode on the configuration."""
    del argv  # its flags are parsed, and it may hold nothing else
    if (_MODE.value == "score") != (_IMAGES.value is not None):
        sys.exit("error: --mode=score and --images=FOLDER go together")
    name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{name}")
    compilation.enable_compilation_cache()
    logging.set_verbosity(logging.WARNING)  # libraries speak up only when it matters
    try:
        compilation.set_precision(_CONFIG.value.matmul_precision)
        parallel.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        with parallel.ending_together():
            if _MODE.value == "train" or parallel.is_first():
                MODES[_MODE.value](_CONFIG.value, workdir)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    except stop.Stopped as stopped:
        print(stopped)


parse = functools.partial(command_line.parse, describe=command_line.help_text)

if __name__ == "__main__":
    app.run(main, flags_parser=parse)
