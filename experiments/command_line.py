"""Reads flags, explains each mistake in one sentence, and prints the help."""

import ast
import pathlib
import runpy
import sys
from collections.abc import Callable

from absl import flags

from experiments.configs import CONFIGS
from experiments.errors import ConfigError
from experiments.options import RENAMED, flat
from jebm.names import did_you_mean

_HELP = """\
python -m experiments.main --config=FILE [--mode=MODE] [--workdir=DIR]
                           [--config.FIELD=VALUE ...]

Trains one experiment, measures it and draws its figures. Start with this one, which
takes two minutes on two cores:
python -m experiments.main --config=experiments/configs/digits.py

modes (--mode)
{modes}

train needs --config. The other modes read the settings of the trained run from
config.json in --workdir. In every mode --config.FIELD=VALUE overrides a setting.

configs (--config=experiments/configs/NAME.py)
{configs}

other flags
  --workdir=DIR     the folder of the run; by default runs/NAME, NAME of the config
  --images=FOLDER   the images that --mode=score scores
  --coordinator=HOST:PORT --num_processes=N --process_id=I
                    trains with several processes: start the same command in each
  --coordinator=auto
                    the same on a TPU pod, under SLURM or Open MPI

settings that you change most often
{settings}

{fields}
"""


MODES = {
    "train": "trains, or resumes from the last checkpoint; then draws and measures",
    "eval": "measures a trained run again, and writes eval.json",
    "sample": "draws new grids of samples, samples/*.png, from a trained run",
    "figures": "draws all figures of a trained run, figures/*.png",
    "score": "scores the images of a folder by a trained run: scores/*.csv, *.png",
}


SETTINGS = {
    "seed": "sets the initial parameters, the order of the data, and all noise",
    "prior": "ebm; or gaussian, the same generator without energies",
    "data.data_dir": "the folder of the data sets, or of your own pictures",
    "data.image_shape": "(height, width, channels) of your own pictures",
    "learning.num_steps": "training steps; a larger value continues a finished run",
    "learning.batch_size": "images per step, over all devices",
    "learning.energy_lr": "rate of the energies; lower it if training diverges",
    "learning.gradient_penalty": "smooths the energies; raise it if training diverges",
    "learning.method": "variational (encoder), mle (posterior chain) or two_stage",
    "chains.prior.num_steps": "steps of the Markov chain that draws samples",
    "chains.prior.step_size": "step size of this chain",
    "eval.protocol": "auto; paper or clean (FID); likelihood, anomaly, ood, ...",
    "eval.num_samples": "samples that the Frechet distances compare with images",
    "log.every": "steps between lines of metrics.jsonl",
}


def tool_help(path: str | None) -> str:
    """Returns what `--help` of a program of tools/ prints: its docstring and flags."""
    del path
    about = sys.modules["__main__"].__doc__ or ""
    return f"{about}\n{flags.FLAGS.main_module_help()}"


def parse(
    argv: list[str],
    describe: Callable[[str | None], str] = tool_help,
    settle: Callable[[list[str]], list[str]] = list,
) -> list[str]:
    """Parses the command line, as `absl.app.run` expects of a `flags_parser`.

    `describe` makes what `--help` prints, of the config's file if one is given.
    `settle` may replace arguments before they are parsed.
    """
    path = value_of("config", argv)
    if path and not pathlib.Path(path).is_file():
        near = did_you_mean(pathlib.Path(path).name, _known_configs())
        sys.exit(f"error: no file {path}; {_there_are()}{near}")
    if any(a.lstrip("-") in ("help", "h", "helpfull", "helpshort") for a in argv[1:]):
        print(describe(path))
        sys.exit(0)
    try:
        argv = settle(argv)
    except (ConfigError, OSError) as error:
        sys.exit(f"error: {error}")
    path = value_of("config", argv)
    try:
        rest = flags.FLAGS(argv)  # absl's own parser ends errors with usage
    except (AttributeError, KeyError, TypeError):  # how config_flags refuses a field
        sys.exit(f"error: {_unknown_field(path, argv)}")
    except flags.IllegalFlagValueError as error:
        sys.exit(f"error: {_wrong_value(str(error), argv)}")
    except flags.Error as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    if not path:
        sys.exit(f"error: --config=FILE is needed; {_there_are()}")
    if len(rest) > 1:
        sys.exit(f"error: unexpected arguments {rest[1:]}")
    return rest


def help_text(path: str | None) -> str:
    """Returns the `--help` of `experiments.main`; with a config, all of its fields."""
    configs = {name.removesuffix(".py"): _headline(name) for name in _known_configs()}
    where = "The comments of experiments/configs/default.py explain every field."
    fields = f"To list all fields of a config: --config=FILE --help.\n{where}"
    if path is not None:
        values = {f"--config.{k}": v for k, v in flat(config_of(path).to_dict())}
        fields = f"all fields of {path}, with their values\n{_lines(values)}\n\n{where}"
    return _HELP.format(
        modes=_lines(MODES),
        configs=_lines(configs),
        settings=_lines({f"--config.{k}": v for k, v in SETTINGS.items()}),
        fields=fields,
    ).rstrip()


def _lines(table):
    width = max(map(len, table))
    return "\n".join(f"  {k:<{width}}  {v}".rstrip() for k, v in table.items())


def _headline(name):
    docstring = ast.get_docstring(ast.parse((CONFIGS / name).read_text()))
    return docstring.splitlines()[0]


def value_of(flag: str, argv: list[str]) -> str | None:
    """Returns what the arguments give for a flag, before anything is parsed.

    Example:
      >>> value_of("mode", ["main", "--mode=eval"]), value_of("mode", ["main"])
      ('eval', None)
    """
    return next(_values_of(flag, argv), None)


def _values_of(flag, argv):
    for argument, following in zip(argv[1:], [*argv[2:], ""], strict=False):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == flag:
            yield value if equals else following


def without(flag: str, argv: list[str]) -> list[str]:
    """Returns the arguments without a flag and its value.

    Example:
      >>> without("mode", ["main", "--mode", "eval", "--mode=eval", "--seed=1"])
      ['main', '--seed=1']
    """
    rest, skip = argv[:1], False
    for argument in argv[1:]:
        name, equals, _ = argument.lstrip("-").partition("=")
        named = argument.startswith("-") and name == flag
        if not (named or skip):
            rest.append(argument)
        skip = named and not equals
    return rest


def config_of(path: str):
    """Returns the config of FILE, or FILE:ARGUMENT, as its file makes it."""
    file, *argument = path.split(":", 1)
    return runpy.run_path(file)["get_config"](*argument)


def _known_configs() -> list[str]:
    return sorted(p.name for p in CONFIGS.glob("*.py") if p.stem != "__init__")


def _there_are() -> str:
    return f"there are {', '.join(_known_configs())} in experiments/configs"


_KINDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "string enum": "one of",
}


def _wrong_value(message, argv):
    """Rewords absl's message "flag --NAME=VALUE: REASON"."""
    name, rest = message.removeprefix("flag --").split("=", 1)
    value = next(v for v in _values_of(name, argv) if rest.startswith(f"{v}: "))
    parser = flags.FLAGS[name].parser
    kind = _KINDS.get(parser.flag_type(), "a section of fields, {'name': value}")
    near, choices = "", getattr(parser, "enum_values", None)
    if choices:
        kind = f"{kind} {', '.join(choices)}"
        near = did_you_mean(value, choices)
    shown = name.removeprefix("config.") if "." in name else f"--{name}"
    return f"{shown} must be {kind}, got {value!r}{near}"


def _unknown_field(path, argv):
    if path is None:
        return f"--config=FILE is needed; {_there_are()}"
    config = config_of(path)
    for argument in argv:
        if not argument.startswith("--config."):
            continue
        name = argument.split("=")[0].removeprefix("--config.")
        if name in RENAMED:
            return f"config.{name} is now called config.{RENAMED[name]}"
        node, fields = config, name.split(".")
        for depth, field in enumerate(fields):
            if not hasattr(node, "keys"):
                return f"{'.'.join(['config', *fields[:depth]])} has no fields"
            if field not in node:
                where = ".".join(["config", *fields[:depth]])
                return (
                    f"{where} has no field {field!r}; known: {sorted(node.keys())}"
                    f"{nearest_field(config, node, field)}"
                )
            node = node[field]
    return f"cannot apply the overrides to {path}: {argv[1:]}"


def nearest_field(config, node, field) -> str:
    """Suggests the field meant: one near in name here, or of that name elsewhere."""
    if near := did_you_mean(field, node.keys()):
        return near
    full = [name for name, _ in flat(config.to_dict())]
    elsewhere = [name for name in full if name.split(".")[-1] == field]
    if elsewhere:
        return f"; did you mean {' or '.join(map(repr, elsewhere))}?"
    return did_you_mean(field, full)
