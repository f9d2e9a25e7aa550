"""data.json: which images a run has read, so that a later command can tell a change.

It holds a list, an entry for each step from which on the images were others: "step",
for each split how many images it has and a digest of them, and of a folder likewise all
of its files. Files, and images that are decoded as they are needed, are told apart
unread, by `mark` of their source: another one of the same name and size is not noticed.
"""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.data import datasets, folders
from experiments.data.loaders import Split
from experiments.data.pixels import digest
from experiments.data.sources import Files, Streamed, digest_of_marks
from experiments.options import Data
from experiments.runtime.files import read_json, write_json

_FILE = "data.json"


def load(path: pathlib.Path, data: Data) -> dict[str, Split]:
    """Loads the splits, and says how they differ from those that the run has read."""
    splits = datasets.load(data)
    warn(path, data, splits)
    return splits


def warn(
    path: pathlib.Path, data: Data, splits: Mapping[str, Split] | None = None
) -> None:
    """Prints how images differ from those that the run in `path` has read, if they do.

    Without `splits` nothing is read, and only the names and sizes of files are known.
    """
    entries = read(path)
    if data.name == "folder" and (not entries or entries[0]["step"]):
        print(
            f"warning: an older version began {path} and held out other pictures of "
            "the folder: the run has learned from most of those held out now."
        )
    if not entries:
        return
    then, now = entries[-1], identity(data, splits)
    if told := differences(then, now):
        print(
            f"warning: the images have changed since step {then['step']} of {path}: "
            f"{'; '.join(told)}."
        )


def note(
    path: pathlib.Path, data: Data, splits: Mapping[str, Split], step: int
) -> None:
    """Notes which images the run in `path` reads from `step` on."""
    entries = [entry for entry in read(path) if entry["step"] < step]
    now = identity(data, splits)
    if not entries or differences(entries[-1], now):
        write_json(path / _FILE, [*entries, {"step": step, **now}])


def identity(data: Data, splits: Mapping[str, Split] | None) -> dict[str, Any]:
    """Returns the number of images, and a digest of them."""
    parts = {name: _of_split(split) for name, split in (splits or {}).items()}
    if data.name == "folder" and data.data_dir is not None:
        parts["files"] = _of_folder(pathlib.Path(data.data_dir).expanduser())
    return parts


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Says what differs among the entries that both have.

    Example:
      >>> then = {"train": {"num": 54}, "test": {"num": 6, "pixels": "a"}}
      >>> now = {"train": {"num": 55}, "test": {"num": 6, "pixels": "b"}}
      >>> differences(then, now)
      ['train: 54 then, 55 now', 'test: 6 then and now, but different ones']
    """
    told = []
    for name in (n for n in then if n in now and n != "step"):
        old, new = then[name], now[name]
        if old["num"] != new["num"]:
            told.append(f"{name}: {old['num']} then, {new['num']} now")
        elif any(old[key] != new[key] for key in old.keys() & new.keys()):
            told.append(f"{name}: {new['num']} then and now, but different ones")
    return told


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the entries of a run; [] of one of an older version."""
    file = path / _FILE
    return read_json(file, list) if file.is_file() else []


def _of_split(split):
    labels = hashlib.sha256(np.asarray(split.labels, np.int64).tobytes()).hexdigest()
    images = split.images
    if isinstance(images, Streamed):  # to decode all of them would take long
        of_images = {"names": images.marks()}
    else:
        of_images = {"pixels": digest(images)}
    return {"num": len(images), **of_images, "labels": labels}


def _of_folder(folder):
    names = folders.list_pictures(folder).names
    files = Files(folder, names)
    return {"num": len(names), "names": digest_of_marks(files, range(len(names)))}
