"""Images that are decoded when they are read.

An encoded source is a sequence of bytes, one image file each, with random access, a
`name(i)` for messages and a `mark(i)`, which tells image i from another without reading
it; it can be pickled, so that worker processes read it too. `Streamed` makes of it what
an array of images is to its readers.
"""

import functools
import hashlib
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from experiments.data.decoding import MOST_BYTES, decode
from experiments.errors import ConfigError

ON_CORRUPT = ("error", "skip")

# Of an image to a smaller one; `place`, from 0 to 1, says which part stays of what is
# too long, .5 the middle.
Cut = Callable[[Image.Image, float], Image.Image]


class Encoded(list):
    """Encoded images in memory."""

    def name(self, i: int) -> str:
        """Names image i in messages."""
        return f"image {i}"

    def mark(self, i: int) -> str:
        """Returns the sum of image i."""
        return hashlib.sha256(self[i]).hexdigest()


class Files:
    """The contents of files in a folder, by their relative names."""

    def __init__(self, folder: pathlib.Path, names: Sequence[str]):
        self._names, self._paths = list(names), [folder / name for name in names]

    def __len__(self):
        return len(self._paths)

    def __getitem__(self, i: int) -> bytes:
        if not self._paths[i].is_file():  # a pipe would wait for ever
            raise OSError("not a file that can be read")
        if (size := self._paths[i].stat().st_size) > MOST_BYTES:
            raise OSError(f"it has {size:,} bytes, and at most {MOST_BYTES:,} are read")
        return self._paths[i].read_bytes()

    def name(self, i: int) -> str:
        """Returns the path of file i."""
        return str(self._paths[i])

    def mark(self, i: int) -> str:
        """Returns the relative name of file i, and its size."""
        path = self._paths[i]
        return f"{self._names[i]} {path.stat().st_size if path.is_file() else 0}"


class Lmdb:
    """The values of an LMDB, in the order of their keys: how LSUN is published.

    Raises:
      ConfigError: where the package is missing, or the directory holds no database, a
        damaged or an incomplete one.
    """

    def __init__(self, path: pathlib.Path):
        self._path = str(path)
        import_lmdb()
        environment = _environment(self._path)
        with environment.begin() as transaction:
            self._keys = list(transaction.cursor().iternext(values=False))

    def __len__(self):
        return len(self._keys)

    def __getitem__(self, i: int) -> bytes:
        with _environment(self._path).begin() as transaction:
            return transaction.get(self._keys[i])

    def name(self, i: int) -> str:
        """Names path and key."""
        return f"{self._path}, key {self.mark(i)}"

    def mark(self, i: int) -> str:
        """Returns key i."""
        return self._keys[i].decode(errors="replace")


def import_lmdb():
    """Imports the package `lmdb`, which is optional."""
    try:
        import lmdb
    except ImportError:
        raise ConfigError(
            "LSUN is published as LMDB files: `pip install lmdb` to read them"
        ) from None
    return lmdb


@functools.cache  # a process may open a database once
def _environment(path):
    lmdb = import_lmdb()
    file = pathlib.Path(path, "data.mdb")
    try:
        environment = lmdb.open(
            path, readonly=True, create=False, lock=False, readahead=False
        )
    except lmdb.Error as error:
        raise ConfigError(f"{file} is no LMDB that can be read: {error}") from error
    # Pages beyond the end of the file would end the process, not raise.
    pages, size = environment.info()["last_pgno"] + 1, environment.stat()["psize"]
    if file.stat().st_size < pages * size:
        environment.close()
        raise ConfigError(
            f"{file} is cut off, {file.stat().st_size:,} of {pages * size:,} bytes: "
            "fetch it again"
        )
    return environment


class Records:
    """The images of a split that TFDS has prepared in its ArrayRecord format."""

    def __init__(self, builder: Any, split: str):
        self._split = f"{builder.data_path}, split {split}"
        self._examples = builder.as_data_source(split, decoders=_as_stored())

    def __len__(self):
        return len(self._examples)

    def __getitem__(self, i: int) -> bytes:
        return self._examples[i]["image"]

    def name(self, i: int) -> str:
        """Names directory, split and number."""
        return f"{self._split}, example {i}"

    def mark(self, i: int) -> str:
        """Returns the number; the directory may move."""
        return str(i)


def records(builder, split: str) -> "Records | Encoded":
    """Returns the images of a split that TFDS has prepared; TFRecords, in memory."""
    if _format(builder) == "array_record":
        return Records(builder, split)
    return Encoded(e["image"] for e in _tf_examples(builder, split))


def labelled_records(builder, split: str) -> tuple[Encoded, np.ndarray]:
    """Reads the images of a split that TFDS has prepared, and their labels."""
    if _format(builder) == "array_record":
        source = builder.as_data_source(split, decoders=_as_stored())
        examples = []
        for start in range(0, len(source), 1000):  # together they read faster
            indices = range(start, min(start + 1000, len(source)))
            examples += source.__getitems__(indices)
    else:
        examples = list(_tf_examples(builder, split))
    labels = np.asarray([e["label"] for e in examples], np.int64)
    return Encoded(e["image"] for e in examples), labels


def _format(builder):
    return builder.info.file_format.value


def _as_stored():
    import tensorflow_datasets as tfds

    return {"image": tfds.decode.SkipDecoding()}


def _tf_examples(builder, split):
    if importlib.util.find_spec("tensorflow") is None:
        raise ConfigError(
            f"{builder.data_path} is of format {_format(builder)}, which needs "
            "TensorFlow: `pip install tensorflow`, or prepare the data set anew by "
            "`python -m tools.data.prepare` in another directory"
        )
    import tensorflow_datasets as tfds

    return tfds.as_numpy(builder.as_dataset(split, decoders=_as_stored()))


def digest_of_marks(encoded, indices: Iterable[int]) -> str:
    """Digests the marks of some images of an encoded source."""
    marks = "\0".join(encoded.mark(int(i)) for i in indices)
    return hashlib.sha256(marks.encode(errors="surrogatepass")).hexdigest()


class Streamed:
    """Images uint8 [N, H, W, C], decoded when they are indexed.

    Stands where an array of images would: `len`, `shape`, and indices, slices or
    arrays of indices, which give arrays.

    Args:
      encoded: an encoded source.
      shape: (H, W, C).
      cut: makes an image of H and W of a decoded one.
      on_corrupt: at an image that cannot be read, "error" raises; "skip" says so and
        takes the next one that can. `skipped` holds their numbers.
      indices: which images of the source, in which order; None for all.

    Raises:
      ConfigError: when an image is indexed that cannot be read.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self,
        encoded,
        shape: tuple[int, int, int],
        cut: Cut,
        on_corrupt: str = "error",
        indices: np.ndarray | None = None,
    ):
        self._encoded, self._cut, self._on_corrupt = encoded, cut, on_corrupt
        self._indices = np.arange(len(encoded)) if indices is None else indices
        self.shape = (len(self._indices), *shape)
        self.skipped: set[int] = set()

    def __len__(self):
        return len(self._indices)

    def __getitem__(self, index) -> np.ndarray:
        chosen = np.arange(len(self))[index]
        if np.ndim(chosen) == 0:
            return self.read(int(chosen))
        images = np.empty((len(chosen), *self.shape[1:]), np.uint8)
        for image, i in zip(images, chosen, strict=True):
            image[...] = self.read(int(i))
        return images

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self[:], dtype)

    def read(self, i: int, place: float = 0.5) -> np.ndarray:
        """Reads image i, uint8 [H, W, C]; what is too long is cut at `place`."""
        for j in (*range(i, len(self)), *range(i)):
            image = self._try(j, place)
            if image is not None:
                return image
        raise ConfigError(f"none of {len(self)} images can be read")

    def all(self) -> tuple[np.ndarray, np.ndarray]:
        """Reads all images that can be read, and returns their numbers too."""
        images = np.empty(self.shape, np.uint8)
        kept: list[int] = []
        for i in tqdm(range(len(self)), "decoding", unit="image", disable=_quick(self)):
            image = self._try(i, 0.5)
            if image is not None:
                images[len(kept)] = image
                kept.append(i)
        return images[: len(kept)], np.asarray(kept, int)

    def marks(self) -> str:
        """Digests what tells these images from others, without reading them."""
        return digest_of_marks(self._encoded, self._indices)

    def subset(self, index: np.ndarray) -> "Streamed":
        """Returns these images alone, in this order."""
        return Streamed(
            self._encoded,
            self.shape[1:],
            self._cut,
            self._on_corrupt,
            self._indices[index],
        )

    def joined(self, other: "Streamed") -> "Streamed":
        """Returns these images and those of another part of the same source."""
        return Streamed(
            self._encoded,
            self.shape[1:],
            self._cut,
            self._on_corrupt,
            np.concatenate([self._indices, other._indices]),
        )

    def _try(self, i, place):
        number, shape = int(self._indices[i]), self.shape[1:]
        try:
            image = self._cut(decode(self._encoded[number], shape[2]), place)
            return np.asarray(image).reshape(shape)
        except Exception as error:  # Pillow's are of many kinds
            reason = f"{self._encoded.name(number)} cannot be read: {error}"
        if self._on_corrupt == "error":
            raise ConfigError(
                f"{reason}. data.on_corrupt='skip' leaves such images out"
            )
        if i not in self.skipped:
            self.skipped.add(i)
            print(f"warning: {reason}. Left out: {len(self.skipped)}", file=sys.stderr)
        return None


def _quick(images):
    # A bar is for what takes longer than a moment; None: where there is a terminal.
    return True if len(images) < 5000 else None
