"""Makes the file of Inception-v3 that FID, KID and Inception score are taken with.

    python -m tools.convert.inception [CHECKPOINT.pth] [--out=FILE] [--sha256=HEX]

CHECKPOINT.pth is pt_inception-2015-12-05-6726825d.pth, the weights of the first FIDs as
pytorch-fid publishes them; without it they are downloaded (96 MB). Reading them needs
PyTorch (`pip install -e '.[convert]'`), but nothing in the file is unpickled other than
tensors and containers. Its sha256 must be that of the published file, or the one given;
every tensor must be known and none may be missing. FILE, by default in the cache where
all commands look for it, holds arrays alone.
"""

import argparse
import hashlib
import pathlib
import sys
import urllib.error
import urllib.request
from typing import Any

import numpy as np
from flax import traverse_util
from tqdm import tqdm

from experiments.errors import USER_ERRORS, ConfigError
from jebm.files import cache_directory, written_whole
from jebm.metrics import inception, torch_file
from tools.arguments import path_argument
from tools.convert import tensors

URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
_CHUNK = 1 << 20


def tensor_name(path: str) -> str:
    """Returns the published name of a variable of `InceptionV3`.

    Example:
      >>> tensor_name("batch_stats/Mixed_5b/branch1x1/bn/mean")
      'Mixed_5b.branch1x1.bn.running_mean'
    """
    _, *parents, leaf = path.split("/")
    return ".".join([*parents, torch_file.LEAVES[leaf]])


def convert(state: dict[str, np.ndarray]) -> tuple[inception.InceptionV3, Any]:
    """Converts a state dict to network and variables, in its dtype.

    Raises:
      ConfigError: if a tensor is missing, not known, of another shape or not finite.
    """
    stem = state.get("Conv2d_1a_3x3.conv.weight", np.zeros(32))
    network = inception.InceptionV3(reduction=max(1, 32 // max(1, len(stem))))
    template = inception.variable_shapes(network)
    shapes = traverse_util.flatten_dict(template, sep="/")
    name_of = {path: tensor_name(path) for path in shapes}
    given = {name for name in state if not name.endswith("num_batches_tracked")}
    missing = sorted(set(name_of.values()) - given)
    unknown = sorted(given - set(name_of.values()))
    if missing or unknown:
        raise ConfigError(
            "the checkpoint's tensors are not those of Inception-v3: "
            f"{len(missing)} missing {missing[:3]}, {len(unknown)} unknown "
            f"{unknown[:3]}"
        )
    converted = {}
    for path, name in name_of.items():
        array = torch_file.turned(path, np.asarray(state[name]))
        if array.shape != shapes[path].shape:
            raise ConfigError(
                f"the checkpoint's {name} has shape {array.shape} after transposing, "
                f"and Inception-v3 needs {shapes[path].shape}"
            )
        if not np.isfinite(array).all():
            raise ConfigError(
                f"the checkpoint's {name} holds values that are not finite"
            )
        converted[path] = np.ascontiguousarray(array)
    return network, traverse_util.unflatten_dict(converted, sep="/")


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dict; no code in the file runs.

    Raises:
      ConfigError: if it is no such file, or PyTorch is not installed.
    """

    def arrays(state):
        return {name: tensor.numpy() for name, tensor in state.items()}

    return tensors.load(path, "a file of tensors", arrays)


def download(url: str, path: pathlib.Path) -> None:
    """Gets a file, in one piece.

    Raises:
      ConfigError: if it cannot be reached.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=60) as source:
            total = int(source.headers.get("Content-Length", 0)) or None
            with (
                written_whole(path) as partial,
                partial.open("wb") as file,
                tqdm(total=total, unit="B", unit_scale=True, disable=None) as progress,
            ):
                while chunk := source.read(_CHUNK):
                    file.write(chunk)
                    progress.update(len(chunk))
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise ConfigError(
            f"cannot download {url} ({error}): get that file elsewhere and give its "
            "path to `python -m tools.convert.inception`"
        ) from None


def sha256_of(path: pathlib.Path) -> str:
    """Computes the sha256 of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main(argv: list[str] | None = None) -> None:
    """Converts the published weights, or those given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=path_argument, nargs="?")
    parser.add_argument("--out", type=path_argument, default=inception.default_file())
    parser.add_argument("--sha256", default=inception.PUBLISHED_SHA256)
    given = parser.parse_args(argv)
    try:
        path = given.checkpoint
        if path is None:
            path = cache_directory() / URL.rsplit("/", 1)[1]
            if not path.is_file():
                download(URL, path)
        if not path.is_file():
            raise ConfigError(f"there is no file {path}")
        found = sha256_of(path)
        if found != given.sha256.lower():
            raise ConfigError(
                f"{path} has the sha256 {found}, not {given.sha256}: it is damaged or "
                "another file; --sha256 accepts another"
            )
        network, variables = convert(read(path))
        flat = traverse_util.flatten_dict(variables)
        flat = {name: array.astype(np.float32) for name, array in flat.items()}
        variables = traverse_util.unflatten_dict(flat)
        inception.save(given.out, variables, found)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")
    size = sum(array.size for array in flat.values())
    print(f"wrote {given.out}: {len(flat)} tensors, {size:,} numbers")
    if network.reduction > 1:
        print(f"warning: a network with 1/{network.reduction} of the channels")


if __name__ == "__main__":
    main()
