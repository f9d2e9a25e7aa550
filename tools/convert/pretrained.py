"""Makes a model that comes with the package from a run: see `jebm.pretrained`.

    python -m experiments.main --config=experiments/configs/digits.py \
        --workdir=runs/pretrained "--config.backbone.decoder_widths=(256, 256)" \
        "--config.backbone.encoder_widths=(256, 256)"
    python -m tools.convert.pretrained runs/pretrained digits

and for "fashion_mnist" the same with experiments/configs/fashion.py and 192 in place
of each 256.
It writes NAME.npz, in float16, and NAME.json where `jebm.load_pretrained` looks for
them, with what the run's eval.json says and the settings in which its config departs
from the default.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
from flax import traverse_util

import jebm
from experiments import options
from experiments.configs import default
from experiments.errors import USER_ERRORS, ConfigError
from experiments.rundir.settings import read_settings
from experiments.runtime.files import write_json
from jebm import pretrained
from jebm.files import write_arrays
from tools.arguments import path_argument

_MEASURED = (
    "frechet",
    "frechet_exact",
    "frechet_long_chain",
    "frechet_untilted",
    "frechet_posterior",
    "frechet_perfect",
    "num_samples",
    "num_reference",
    "features",
)


def export(run: pathlib.Path, name: str, out: pathlib.Path) -> None:
    """Writes NAME.npz and NAME.json of the newest checkpoint of `run`."""
    _, params = jebm.load(run)
    leaves = traverse_util.flatten_dict(params._asdict(), sep="/")
    with np.errstate(over="ignore"):  # told below
        arrays = {path: np.asarray(leaf, np.float16) for path, leaf in leaves.items()}
    settings = dict(options.flat(read_settings(run)))
    unset = dict(options.flat(options.read(default.get_config()).to_dict()))
    evaluated = json.loads((run / "eval.json").read_text())
    model = json.loads((run / "model.json").read_text())
    out.mkdir(parents=True, exist_ok=True)
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ConfigError(f"a parameter of {run} is too large for float16")
    sha256, size = write_arrays(out / f"{name}.npz", arrays)
    about = {
        "file": f"{name}.npz",
        "sha256": sha256,
        "model": model,
        "settings": {k: v for k, v in settings.items() if unset.get(k) != v},
        "measured": {k: evaluated[k] for k in _MEASURED if k in evaluated},
    }
    write_json(out / f"{name}.json", about)
    print(f"wrote {out / name}.npz, {size:,} bytes, and its .json")


def main(argv: list[str]) -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=path_argument)
    parser.add_argument("name")
    folder = pathlib.Path(pretrained.__file__).parent
    parser.add_argument("--out", type=path_argument, default=folder)
    given = parser.parse_args(argv)
    try:
        export(given.run, given.name, given.out)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
