"""The configurations of the experiments, one a file."""

import pathlib

CONFIGS = pathlib.Path(__file__).parent
