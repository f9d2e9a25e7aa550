"""Reads flags so that each mistake ends in one sentence."""

import pathlib
import runpy
import sys

from absl import flags

from jebm.checkpoints import CorruptCheckpointError

CONFIGS = pathlib.Path(__file__).parent / "configs"


class ConfigError(ValueError):
    """What the user asked for cannot be done; raised before any work."""


class Diverged(RuntimeError):
    """Training has left the finite numbers."""


class ProcessFailed(RuntimeError):
    """Another process of the same run has ended with an error."""


# Ended with one sentence and a non-zero exit; anything else is a bug: show its trace.
USER_ERRORS = (ConfigError, Diverged, ProcessFailed, CorruptCheckpointError, OSError)


def parse(argv: list[str]) -> list[str]:
    """Parses the command line, as `absl.app.run` expects of a `flags_parser`."""
    path = _config_file(argv)
    if path is None:
        if not any("help" in a for a in argv):
            sys.exit(f"error: --config=FILE is needed; there are {_known_configs()}")
    elif not pathlib.Path(path).is_file():
        sys.exit(f"error: no file {path}; there are {_known_configs()}")
    try:
        return flags.FLAGS(argv)  # absl's own parser ends errors with usage
    except (AttributeError, KeyError, TypeError):  # how config_flags refuses a field
        sys.exit(f"error: {_unknown_field(path, argv)}")
    except flags.Error as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


def _config_file(argv):
    for argument, following in zip(argv, [*argv[1:], None], strict=True):
        if argument.lstrip("-") == "config":
            return following
        if argument.lstrip("-").startswith("config="):
            return argument.split("=", 1)[1]
    return None


def _known_configs() -> str:
    names = sorted(p.name for p in CONFIGS.glob("*.py") if p.stem != "__init__")
    return f"{', '.join(names)} in experiments/configs"


def _unknown_field(path, argv):
    config = runpy.run_path(path)["get_config"]()
    for argument in argv:
        if not argument.startswith("--config."):
            continue
        node = config
        fields = argument.split("=")[0].removeprefix("--config.").split(".")
        for depth, field in enumerate(fields):
            if not hasattr(node, "keys"):
                return f"{'.'.join(['config', *fields[:depth]])} has no fields"
            if field not in node:
                where = ".".join(["config", *fields[:depth]])
                return f"{where} has no field {field!r}; known: {sorted(node.keys())}"
            node = node[field]
    return f"cannot apply the overrides to {path}: {argv[1:]}"
