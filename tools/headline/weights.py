"""Averaged parameters at half their size: weights.npz in bfloat16, without pickle.

    FOLDER/weights.npz     an array per parameter, under its path
    FOLDER/weights.json    what `jebm.build` takes, the step, and the sha256 of the file

As `jebm.pretrained` keeps its models, but that NumPy has no bfloat16: what was float is
kept as its bits, in uint16. Three digits of a parameter are left.
"""

import hashlib
import io
import pathlib

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

import jebm
from experiments.errors import ConfigError
from experiments.runtime.files import read_json, write_json
from jebm import checks
from jebm.files import write_arrays


def write(
    folder: pathlib.Path, model: jebm.Model, params: jebm.Params, step: int
) -> None:
    """Writes the parameters of a model, as they were after a step of training."""
    arrays = traverse_util.flatten_dict(params._asdict(), sep="/")
    bits = {path: _bits(array) for path, array in arrays.items()}
    sha256, _ = write_arrays(folder / "weights.npz", bits)
    about = {
        "file": "weights.npz",
        "sha256": sha256,
        "step": step,
        "model": jebm.to_spec(model),
        "dtypes": {path: np.dtype(a.dtype).name for path, a in arrays.items()},
    }
    write_json(folder / "weights.json", about)


def read(folder: pathlib.Path) -> tuple[jebm.Model, jebm.Params]:
    """Reads what `write` has written, each parameter with the dtype that it had.

    Returns:
      The model and its averaged parameters, as of `jebm.load`.

    Raises:
      ConfigError: if the file is not the one that was written.
    """
    about = read_json(folder / "weights.json")
    file = folder / about["file"]
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != about["sha256"]:
        raise ConfigError(f"{file} is damaged: its sha256 is another")
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        found = {
            path: _value(arrays[path], dtype) for path, dtype in about["dtypes"].items()
        }
    model = jebm.build(about["model"])
    params = jebm.Params(**traverse_util.unflatten_dict(found, sep="/"))
    checks.params(model, params)
    return model, params


def _bits(array):
    """Returns the bits of a float in bfloat16, and anything else as it is."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return np.asarray(array)
    return np.asarray(array).astype(jnp.bfloat16).view(np.uint16)


def _value(stored, dtype):
    if not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        return jnp.asarray(stored)
    return jnp.asarray(stored.view(jnp.bfloat16).astype(dtype))
