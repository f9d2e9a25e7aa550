"""Trained models that come with the package.

Each is NAME.npz, one float16 array per parameter under its path, and NAME.json: what
`jebm.build` takes, how it was trained and measured, and the sha256 of the arrays' file.
`tools/convert/pretrained.py` makes both from a run.
"""

import hashlib
import io
import json
from importlib import resources

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jebm import checks
from jebm.model import Model, Params
from jebm.spec import build

_FOLDER = resources.files(__name__)


def names() -> list[str]:
    """Names the models there are.

    Example:
      >>> names()
      ['digits', 'fashion_mnist']
    """
    return sorted(
        file.name.removesuffix(".json")
        for file in _FOLDER.iterdir()
        if file.name.endswith(".json")
    )


def load_pretrained(name: str) -> tuple[Model, Params]:
    """Loads a trained model that comes with the package; nothing is downloaded.

    "digits" is scikit-learn's handwritten digits, 8x8 and grey; "fashion_mnist" is
    clothes, 28x28 and grey. Both have a generator of two layers and an encoder. Each
    takes less than 1 MB: the files hold float16, and the parameters returned are
    float32. The rounding moves the score of an image by .01 nats in the mean.

    Args:
      name: of the model.

    Returns:
      The model and its averaged parameters, rounded to float16; else as `jebm.load`.

    Raises:
      ValueError: for an unknown name, or a file that is not the one that was shipped.

    Example:
      >>> import jax, jebm
      >>> model, params = load_pretrained("digits")
      >>> jebm.sample(jax.random.key(0), model, params, 4).x.shape
      (4, 8, 8, 1)
    """
    checks.one_of("name", name, names())
    about = json.loads((_FOLDER / f"{name}.json").read_text())
    data = (_FOLDER / f"{name}.npz").read_bytes()
    if hashlib.sha256(data).hexdigest() != about["sha256"]:
        raise ValueError(f"{_FOLDER / name}.npz is damaged: its sha256 is another")
    model = build(about["model"])
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {path: jnp.asarray(a, jnp.float32) for path, a in file.items()}
    params = Params(**traverse_util.unflatten_dict(arrays, sep="/"))
    checks.params(model, params)
    return model, params
