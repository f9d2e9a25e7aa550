"""Draws a trained run, and measures what can be measured of it.

    python -m tools.headline.measure RUN

As training does at its end, and unlike `--mode=eval`: where the evaluator lacks
something, a classifier of the data for instance, eval.json holds the rest and says so.
"""

import argparse
import pathlib
import sys

from experiments import options
from experiments.drawing import samples
from experiments.errors import USER_ERRORS
from experiments.evaluation import evaluate
from experiments.rundir.settings import read_settings
from experiments.runtime import compilation
from tools.arguments import path_argument


def measure(run: pathlib.Path) -> None:
    """Writes samples, eval.json and the page of the run's newest checkpoint."""
    experiment = options.read(read_settings(run))
    compilation.set_precision(experiment.matmul_precision)
    samples.sample(experiment, run)
    evaluate.evaluate_if_possible(experiment, run)


def main(argv: list[str]) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=path_argument)
    compilation.enable_compilation_cache()
    try:
        measure(parser.parse_args(argv).run)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
