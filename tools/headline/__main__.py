"""Trains, measures and packs in half an hour of an accelerator.

    python -m tools.headline --data=NAME-or-FOLDER --workdir=DIR [--minutes=30]
        [--smallest] [--slice_minutes=9] [--slices=N] [--config.FIELD=VALUE ...]

The data set NAME, or a FOLDER of pictures, is trained by the config that
`tools/headline/settings.py` names, for so many minutes of wall time, in DIR/run. Every
`slice_minutes` the process of training ends and another goes on from its checkpoint.
Then the run is drawn, and measured by its `eval.protocol`, and what is worth keeping is
packed into DIR/kept, below 48 MiB. Run again, it goes on where it stood, also after
Ctrl-C or SIGTERM; with fewer minutes than it has trained already, it measures and packs
what there is. `--slices=N` leaves it after N slices, for a place where no command may
take long. `--smallest` is a smaller network for 2 minutes.
"""

import argparse
import pathlib
import signal
import sys

from experiments.errors import USER_ERRORS, ConfigError
from tools.arguments import path_argument, positive
from tools.headline import outcome, settings, slices

_MINUTES, _SMALLEST_MINUTES = 30.0, 2.0


def headline(given: argparse.Namespace, overrides: list[str]) -> None:
    """Trains, and where the time is up measures and packs.

    Raises:
      ConfigError: for what cannot be done, naming the argument.
    """
    workdir: pathlib.Path = given.workdir
    run = workdir / "run"
    minutes = given.minutes
    if minutes is None:
        minutes = _SMALLEST_MINUTES if given.smallest else _MINUTES
    config = settings.arguments(given.data, given.smallest, overrides)
    done = slices.train(
        [sys.executable, "-m", "experiments.main", *config, f"--workdir={run}"],
        workdir,
        60 * minutes,
        60 * given.slice_minutes,
        given.slices,
    )
    taken = slices.seconds_taken(workdir)
    print(f"{taken / 60:.1f} of {minutes:g} minutes of training are taken.")
    if not done:
        print("The same command goes on from here.")
        return
    outcome.draw_and_measure(run)
    contents = outcome.keep(run, workdir / "kept", taken)
    total = sum(contents["bytes"].values())
    print(f"Kept in {workdir / 'kept'}: {total / 2**20:.1f} MiB.")
    for name, size in contents["left_out"].items():
        print(f"warning: {name}, {size / 2**20:.1f} MiB, did not fit.")


def _not_negative(text):
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return value


def _count(text):
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Reads the command line: its own arguments, and those of `experiments.main`.

    Raises:
      ConfigError: for an argument that is neither.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tools.headline",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--workdir", required=True, type=path_argument)
    parser.add_argument("--minutes", type=_not_negative)
    parser.add_argument("--smallest", action="store_true")
    parser.add_argument("--slice_minutes", type=positive, default=9.0)
    parser.add_argument("--slices", type=_count)
    given, rest = parser.parse_known_args(argv)
    for argument in rest:
        if not (argument.startswith("--config.") and "=" in argument):
            raise ConfigError(
                f"further arguments must be --config.FIELD=VALUE, got {argument!r}"
            )
    return given, rest


def _interrupt(number, frame):
    del number, frame
    raise KeyboardInterrupt


def main(argv: list[str]) -> None:
    """Runs the command line."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        headline(*parse(argv))
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("Stopped: the same command goes on from here.")


if __name__ == "__main__":
    main(sys.argv[1:])
