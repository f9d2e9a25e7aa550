"""The config of a trained run, made of its config.json.

It is a config file as well: `--config=experiments/rundir/of_run.py:WORKDIR`. So the
modes that read a run take its settings, and none need be typed again.
"""

import json
import pathlib
from typing import Any

from ml_collections import config_dict

from experiments.configs import default
from experiments.errors import ConfigError
from experiments.options import flat
from experiments.rundir.settings import read_settings

# Of another kind they have other fields; what is absent is not as by default.
_WHOLE = ("backbone", "energy", "likelihood")


def get_config(workdir: str) -> config_dict.ConfigDict:
    """Returns the config of the run in `workdir`.

    A field that an older version did not know is as it is by default.

    Raises:
      ConfigError: if config.json is damaged.
    """
    config, values = default.get_config(), read_settings(pathlib.Path(workdir))
    for name in _WHOLE:
        config[name] = config_dict.ConfigDict()
    try:
        _update(config, values)
    except (TypeError, ValueError) as error:  # a value of another type
        file = pathlib.Path(workdir) / "config.json"
        raise ConfigError(f"{file} cannot be read: {error}") from error
    return config


def differing(config: config_dict.ConfigDict, workdir: pathlib.Path) -> list[str]:
    """Names the fields of a config that are others in the run of `workdir`."""
    ours, theirs = (
        dict(flat(json.loads(c.to_json()))) for c in (config, get_config(str(workdir)))
    )
    absent = object()
    return sorted(name for name in ours if ours[name] != theirs.get(name, absent))


def _update(section, values):
    """Sets fields of a section, those of sections below it too."""
    for name, value in values.items():
        below = section.get(name)
        if name not in section:
            section[name] = _typed(value)
        elif isinstance(value, dict) and isinstance(below, config_dict.ConfigDict):
            _update(below, value)
        elif value is not None or below is not None:  # what is None keeps its type
            section[name] = _typed(value)


def _typed(value: Any) -> Any:
    """Converts a value of JSON to the types that the command line can override."""
    if isinstance(value, dict):
        return config_dict.ConfigDict({k: _typed(v) for k, v in value.items()})
    if isinstance(value, list):
        return tuple(map(_typed, value))
    return config_dict.placeholder(str) if value is None else value
