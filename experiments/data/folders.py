"""The pictures of a folder: which they are, and which of them are held out.

Training and scoring list a folder alike, by `list_pictures`.
"""

import hashlib
import os
import pathlib
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from experiments.data.decoding import FORMATS, SUFFIXES, begins_as_picture
from experiments.runtime.files import readable

# Folders and files that systems make beside those of people, in small letters; what
# begins with a dot is hidden anyway: .ipynb_checkpoints, .Trash, ._0000.png of macOS.
_OF_SYSTEMS = {
    "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "#recycle", "@eadir",
    "__macosx", "lost+found", "system volume information",
}  # fmt: skip


_OF_A_RUN = {"config.json", "model.json"}  # files of the directory of a run


class Listing(NamedTuple):
    """What is in and below a folder.

    Attributes:
      folder: the folder.
      names: of the pictures, relative to the folder, in alphabetical order.
      others: of files that are no pictures.
      num_hidden: hidden files and folders, which are left out.
      loops: links to folders that the folder is in, which are not followed.
      runs: directories of runs, whose pictures are drawn by a model.
    """

    folder: pathlib.Path
    names: list[str]
    others: list[str]
    num_hidden: int
    loops: list[str]
    runs: list[str]

    @property
    def left_out(self) -> str:
        """Says what is left out, in a sentence; "" where nothing is."""
        parts = []
        if self.others:
            some = ", ".join(self.others[:3]) + (", ..." if self.others[3:] else "")
            parts.append(
                f"{len(self.others)} that are not {', '.join(FORMATS)}: {some}"
            )
        if self.num_hidden:
            parts.append(f"{self.num_hidden} hidden")
        if self.loops:
            parts.append(f"links to a folder that they are in: {', '.join(self.loops)}")
        if self.runs:
            parts.append(f"directories of runs: {', '.join(self.runs)}")
        if not parts:
            return ""
        return readable(f"Left out of {self.folder}: {'; '.join(parts)}")


def list_pictures(folder: pathlib.Path) -> Listing:
    """Lists the pictures in and below a folder.

    Links are followed, and what they lead to is listed once. A file is a picture if its
    name ends so, damaged or not, or if it begins as one.

    Raises:
      OSError: where a folder may not be read.
    """
    found = _Found(folder)
    names: list[str] = []
    others: list[str] = []
    for name in found.files():
        is_picture = name.lower().endswith(SUFFIXES) or _begins_so(folder / name)
        (names if is_picture else others).append(name)
    names.sort()
    others.sort()
    return Listing(folder, names, others, found.num_hidden, found.loops, found.runs)


class _Found:
    """The files below a folder, and what was passed over on the way."""

    def __init__(self, folder: pathlib.Path):
        self.num_hidden = 0
        self.loops: list[str] = []
        self.runs: list[str] = []
        self._folder = folder

    def files(self) -> Iterator[str]:
        """Yields the relative name of each file once; links after the files."""
        seen, links = set(), []
        for folder, real, names in self._folders():
            for name in names:
                path = os.path.join(folder, name)
                if os.path.islink(path):
                    links.append(path)
                else:
                    seen.add(os.path.join(real, name))
                    yield os.path.relpath(path, self._folder)
        for path in sorted(links):
            if (target := os.path.realpath(path)) not in seen:
                seen.add(target)
                yield os.path.relpath(path, self._folder)

    def _folders(self) -> Iterator[tuple[str, str, list[str]]]:
        """Yields each folder once, its real path, and its files; links come last."""
        root = os.path.realpath(self._folder)
        seen: set[str] = set()
        waiting = [str(self._folder)]
        while waiting:
            links: list[str] = []
            for start in waiting:
                for folder, below, names in os.walk(start, onerror=_raise):
                    real = os.path.realpath(folder)
                    if real in seen:
                        below.clear()
                        continue
                    seen.add(real)
                    if real != root and set(names) >= _OF_A_RUN:
                        self.runs.append(os.path.relpath(folder, self._folder))
                        below.clear()
                        continue
                    below[:] = self._visible(below)
                    paths = [os.path.join(folder, name) for name in below]
                    links += filter(os.path.islink, paths)
                    yield folder, real, self._visible(names)
            waiting = [path for path in sorted(links) if not self._is_loop(path, root)]

    def _visible(self, names):
        """Sorts names, and counts those that are left out."""
        visible = [n for n in sorted(names) if not is_hidden(n)]
        self.num_hidden += len(names) - len(visible)
        return visible

    def _is_loop(self, link, root):
        """Says whether a link leads to the root, or to a folder that it is in."""
        target = os.path.realpath(link)
        is_loop = root == target or root.startswith(os.path.join(target, ""))
        if is_loop:
            self.loops.append(os.path.relpath(link, self._folder))
        return is_loop


def classes(names: Sequence[str]) -> list[str]:
    """Returns the classes of pictures: the folders that they are in, in order.

    There are none where a picture is in no folder, or all are in one.

    Example:
      >>> classes(["dogs/0.png", "cats/1.png", "cats/young/2.png"])
      ['cats', 'dogs']
      >>> classes(["dogs/0.png", "1.png"])
      []
    """
    if not all(os.sep in name for name in names):
        return []
    found = sorted({class_of(name) for name in names})
    return found if len(found) > 1 else []


def class_of(name: str) -> str:
    """Returns the first folder of a relative name."""
    return name.split(os.sep, 1)[0]


def is_hidden(name: str) -> bool:
    """Says whether a file or folder of this name is one that people do not see.

    Example:
      >>> [is_hidden(name) for name in ("._0000.png", "Thumbs.db", "0000.png")]
      [True, True, False]
    """
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def held_out(names: Sequence[str], share: float) -> tuple[list[int], list[int]]:
    """Divides names into those to train on and those that are held out, about a share.

    A name is held out by itself: other names beside it change nothing. Of two names and
    more, each side has at least one, if need be that whose turn is next; so in a folder
    of few names, where that was needed, another one may send it back.

    Returns:
      the places in `names` of either, in an order that looks random and that each name
      also has by itself.

    Example:
      >>> training, others = held_out([f"{i}.png" for i in range(1000)], 0.1)
      >>> len(training), len(others)
      (891, 109)
    """
    value = [_value(name) for name in names]
    order = sorted(range(len(names)), key=lambda i: (value[i], names[i]))
    num = sum(v < share for v in value)
    num = min(max(num, 1), len(names) - 1)
    return order[num:], order[:num]


def _value(name):
    """Maps a name to a number in [0, 1); file systems write an accent in two ways."""
    composed = unicodedata.normalize("NFC", name)
    digest = hashlib.sha256(composed.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8]) / 2**64


def _begins_so(path):
    """Says whether a file begins as a picture; one that cannot be read does not."""
    if not path.is_file():  # a pipe would wait for ever
        return False
    try:
        with path.open("rb") as opened:
            return begins_as_picture(opened.read(16))
    except OSError:
        return False


def _raise(error):
    raise error
