"""Makes a data set ready for training.

    python -m tools.data.prepare NAME [--data_dir=DIR] [--on_corrupt=error|skip]

Downloads what it can, says what you must download by hand, verifies both, and
writes the data set in the layout of TFDS, in its ArrayRecord format, without
TensorFlow: `tfds.data_source(NAME)` reads it as well. Sizes and sha256 of the files are
those of TFDS's catalogue. LSUN stays in its published format. After an interruption run
the same command again: it goes on where it stopped. DIR is TFDS_DATA_DIR or TFDS's
default.
"""

import argparse
import dataclasses
import gzip
import itertools
import pathlib
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from experiments.data import loaders, sources
from experiments.data.decoding import decode
from experiments.errors import USER_ERRORS, ConfigError
from jebm.files import written_whole
from jebm.names import unknown_name_message
from tools.data import downloads

# Of each split, keys as TFDS has them, and examples.
Examples = dict[str, Iterator[tuple[Any, dict[str, Any]]]]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a data set is made of."""

    files: tuple[str, ...]  # by their names in TFDS's catalogue
    counts: dict[str, int]  # images of each split, as published
    examples: Callable[[pathlib.Path, "Recipe"], Examples]
    page: str | None = None  # where to fetch the files by hand
    label_names: Callable[[pathlib.Path], list[str]] | None = None


def prepare(name: str, data_dir: str | None = None, on_corrupt: str = "error") -> None:
    """Prepares a data set; does nothing where it is prepared already.

    Args:
      name: a key of `RECIPES`.
      data_dir: None for TFDS_DATA_DIR or TFDS's default.
      on_corrupt: "error", or "skip" to leave out images that cannot be read.

    Raises:
      ConfigError: for another name, files that are missing, damaged or not the
        published ones, or another number of images.
    """
    if name in ("digits", "folder", "fake"):
        print(f"{name} needs no preparation.")
        return
    if name not in RECIPES:
        raise ConfigError(unknown_name_message("data set", name, RECIPES))
    recipe = RECIPES[name]
    root = pathlib.Path(loaders.data_directory(data_dir))
    if name == "lsun/church_outdoor":
        _prepare_church(name, recipe, root)
    else:
        if loaders.prepared(name, data_dir) is None:
            folder = _fetch_files(name, recipe, root)
            _write(name, recipe, folder, root, on_corrupt)
        _check_prepared(name, recipe, data_dir)
    counts = ", ".join(f"{num:,} {split}" for split, num in recipe.counts.items())
    print(f"{name} is ready in {root / name}: {counts} images.")


def catalogue(name: str) -> dict[str, tuple[str, int, str]]:
    """Returns, by file name, the (url, size, sha256) that TFDS has of a data set."""
    import tensorflow_datasets as tfds

    infos = tfds.builder_cls(name.split("/")[0]).url_infos or {}
    return {i.filename: (url, i.size, i.checksum) for url, i in infos.items()}


def _fetch_files(name, recipe, root):
    """Fetches and verifies the recipe's files, and returns their folder."""
    known = catalogue(name)
    if recipe.page is None:
        folder = root / "downloads" / name
        for file in recipe.files:
            url, size, sha256 = known[file]
            downloads.fetch(url, folder / file, size, sha256)
        return folder
    folder = root / "downloads" / "manual"
    missing = [file for file in recipe.files if not (folder / file).is_file()]
    if missing:
        sizes = [f" ({known[f][1]:,} bytes)" if f in known else "" for f in missing]
        wanted = ", ".join(f"{f}{s}" for f, s in zip(missing, sizes, strict=True))
        raise ConfigError(
            f"{name} needs files that you download by hand: {wanted}. Get them from "
            f"{recipe.page}, put them into {folder}, and run this again"
        )
    for file in recipe.files:
        if file in known:
            downloads.verify(folder / file, *known[file][1:])
    return folder


def _write(name, recipe, folder, root, on_corrupt):
    """Writes a data set as TFDS would, from examples with encoded images."""
    import tensorflow_datasets as tfds

    base = tfds.builder_cls(name.split("/")[0])
    examples = {
        split: _checked(found, split, recipe.counts[split], on_corrupt)
        for split, found in recipe.examples(folder, recipe).items()
    }

    class Builder(base, skip_registration=True):
        __module__ = base.__module__
        name = base.name

        def _split_generators(self, dl_manager):
            if recipe.label_names is not None:
                self.info.features["label"].names = recipe.label_names(folder)
            return examples

        def _generate_examples(self):
            raise NotImplementedError  # abstract in TFDS

    config = name.partition("/")[2] or None
    builder = Builder(data_dir=root, config=config, file_format="array_record")
    builder.download_and_prepare()


def _checked(examples, split, expected, on_corrupt):
    """Passes examples on; counts them, and sees to it that each image can be read."""
    num, left_out = 0, 0
    for key, example in examples:
        num += 1
        if isinstance(example["image"], bytes):
            try:
                decode(example["image"], channels=3)
            except Exception as error:  # Pillow's are of many kinds
                told = f"image {key} cannot be read: {error}"
                if on_corrupt == "error":
                    raise ConfigError(
                        f"{told}. --on_corrupt=skip leaves such images out"
                    ) from error
                left_out += 1
                print(f"warning: {told}. Left out: {left_out}", file=sys.stderr)
                continue
        yield key, example
    if num != expected:
        raise ConfigError(f"split {split!r} has {num:,} images, not {expected:,}")


def _check_prepared(name, recipe, data_dir):
    """Refuses a prepared data set of other sizes than the published ones."""
    builder = loaders.tfds_builder(name, loaders.Options(data_dir))
    for split, expected in recipe.counts.items():
        info = builder.info.splits.get(split)
        found = info.num_examples if info else 0
        if found > expected or found < 0.99 * expected:  # some may be left out
            raise ConfigError(
                f"{builder.data_path} has {found:,} images in split {split!r}, and "
                f"{expected:,} are published: it is another data set, or a part of it"
            )


def _idx(folder, recipe):
    """Reads the four files of MNIST and of its likes."""

    def split(part, num):
        images = _read_idx(folder / f"{part}-images-idx3-ubyte.gz", (num, 28, 28))
        labels = _read_idx(folder / f"{part}-labels-idx1-ubyte.gz", (num,))
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": Image.fromarray(image), "label": int(label)}

    counts = recipe.counts
    return {
        "train": split("train", counts["train"]),
        "test": split("t10k", counts["test"]),
    }


def _read_idx(file, shape):
    data = gzip.decompress(file.read_bytes())
    header = 4 * (1 + len(shape))
    magic, *found = np.frombuffer(data[:header], ">u4").tolist()
    if magic != 0x800 + len(shape) or tuple(found) != shape:
        raise ConfigError(
            f"{file} has the magic number {magic} and the shape {found}, not "
            f"{0x800 + len(shape)} and {list(shape)}"
        )
    return np.frombuffer(data[header:], np.uint8).reshape(shape)


_CIFAR = "cifar-10-binary.tar.gz"


def _cifar10(folder, recipe):
    """Reads the binary version: a byte of label and 3,072 of planes each."""
    del recipe

    def split(part, files):
        index = 0
        with tarfile.open(folder / _CIFAR) as tar:
            for file in files:
                data = tar.extractfile(f"cifar-10-batches-bin/{file}").read()
                for record in np.frombuffer(data, np.uint8).reshape(-1, 3073):
                    planes = record[1:].reshape(3, 32, 32)
                    image = np.ascontiguousarray(np.moveaxis(planes, 0, -1))
                    yield (
                        index,
                        {
                            "id": f"{part}_{index:05d}",
                            "image": Image.fromarray(image),
                            "label": int(record[0]),
                        },
                    )
                    index += 1

    return {
        "train": split("train", [f"data_batch_{i}.bin" for i in range(1, 6)]),
        "test": split("test", ["test_batch.bin"]),
    }


def _cifar10_names(folder):
    with tarfile.open(folder / _CIFAR) as tar:
        text = tar.extractfile("cifar-10-batches-bin/batches.meta.txt").read()
    return text.decode().split()


def _svhn(folder, recipe):
    """Reads the .mat files; the digit 0 is stored as 10. `extra` is left alone."""
    del recipe
    from scipy import io

    def split(part):
        data = io.loadmat(folder / f"{part}_32x32.mat")
        images, labels = np.moveaxis(data["X"], -1, 0), data["y"].ravel() % 10
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            image = Image.fromarray(np.ascontiguousarray(image))
            yield i, {"id": f"{part}_{i:06d}", "image": image, "label": int(label)}

    return {"train": split("train"), "test": split("test")}


_CELEBA = (
    "img_align_celeba.zip",
    "list_eval_partition.txt",
    "list_attr_celeba.txt",
    "list_landmarks_align_celeba.txt",
    "identity_CelebA.txt",
)


def _celeba(folder, recipe):
    """Reads the aligned images as they are, in JPEG, with all that is known of them."""
    images, *tables = (folder / file for file in _CELEBA)
    part, attributes, landmarks, identity = map(_celeba_table, tables)

    def split(number):
        with zipfile.ZipFile(images) as archive:
            for file in sorted(f for f, row in part[1].items() if row == [number]):
                yield (
                    file,
                    {
                        "image": archive.read(f"img_align_celeba/{file}"),
                        "attributes": {
                            name: value > 0
                            for name, value in zip(
                                attributes[0], attributes[1][file], strict=True
                            )
                        },
                        "landmarks": dict(
                            zip(landmarks[0], landmarks[1][file], strict=True)
                        ),
                        "identity": {"Identity_No": identity[1][file][0]},
                    },
                )

    return {name: split(number) for number, name in enumerate(recipe.counts)}


def _celeba_table(file):
    """Reads the names of columns, where the file has them, and the rows by image."""
    lines = [line.split() for line in file.read_text().splitlines()]
    names = lines[1] if len(lines[0]) == 1 else []
    rows = [line for line in lines if line and line[0].endswith(".jpg")]
    return names, {file: [int(value) for value in row] for file, *row in rows}


def _celeba_hq(folder, recipe):
    """Reads the tar of images that TFDS asks for."""
    file = folder / recipe.files[0]

    def images():
        try:
            with tarfile.open(file) as tar:
                for member in tar:
                    if member.isfile():
                        data = tar.extractfile(member).read()
                        example = {"image": data, "image/filename": member.name}
                        yield member.name, example
        except (tarfile.TarError, EOFError) as error:
            raise ConfigError(f"{file} is damaged or cut off: {error}") from error

    return {"train": images()}


def _prepare_church(name, recipe, root):
    """Unpacks LSUN's databases; `experiments.data.loaders` reads them as they are."""
    sources.import_lmdb()
    known = catalogue(name)
    for file, (split, expected) in zip(
        recipe.files, recipe.counts.items(), strict=True
    ):
        target = root / "lsun" / file.removesuffix(".zip")
        if not (target / "data.mdb").is_file():
            url, size, sha256 = known[file]
            archive = root / "downloads" / name / file
            downloads.fetch(url, archive, size, sha256)
            _unpack(archive, target)
        if (found := len(sources.Lmdb(target))) != expected:
            raise ConfigError(
                f"{target} has {found:,} images, and {expected:,} are published in "
                f"split {split!r}"
            )


def _unpack(archive, target):
    """Takes data.mdb out of a zip file, in one piece."""
    target.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as opened:
        member = opened.getinfo(f"{target.name}/data.mdb")
        bar = tqdm(
            total=member.file_size, unit="B", unit_scale=True,
            desc=f"unpacking {archive.name}", disable=None,
        )  # fmt: skip
        with (
            bar,
            opened.open(member) as source,
            written_whole(target / "data.mdb") as partial,
            partial.open("wb") as out,
        ):
            for chunk in iter(lambda: source.read(2**20), b""):
                out.write(chunk)
                bar.update(len(chunk))


_IDX = tuple(
    f"{part}-{kind}-ubyte.gz"
    for part, kind in itertools.product(
        ("train", "t10k"), ("images-idx3", "labels-idx1")
    )
)
_LIKE_MNIST = Recipe(_IDX, {"train": 60_000, "test": 10_000}, _idx)

RECIPES = {
    "mnist": _LIKE_MNIST,
    "fashion_mnist": _LIKE_MNIST,
    "kmnist": _LIKE_MNIST,
    "cifar10": Recipe(
        (_CIFAR,),
        {"train": 50_000, "test": 10_000},
        _cifar10,
        label_names=_cifar10_names,
    ),
    "svhn_cropped": Recipe(
        ("train_32x32.mat", "test_32x32.mat"), {"train": 73_257, "test": 26_032}, _svhn
    ),
    "celeb_a": Recipe(
        _CELEBA,
        {"train": 162_770, "validation": 19_867, "test": 19_962},
        _celeba,
        page="https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html",
    ),
    "celeb_a_hq/256": Recipe(
        ("data256x256.tar",),
        {"train": 30_000},
        _celeba_hq,
        page="https://github.com/tkarras/progressive_growing_of_gans",
    ),
    "lsun/church_outdoor": Recipe(
        ("church_outdoor_train_lmdb.zip", "church_outdoor_val_lmdb.zip"),
        {"train": 126_227, "val": 300},
        lambda folder, recipe: {},  # read as published
    ),
}


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help=", ".join(RECIPES))
    parser.add_argument("--data_dir", help="Where data sets lie.")
    parser.add_argument("--on_corrupt", choices=sources.ON_CORRUPT, default="error")
    arguments = parser.parse_args()
    try:
        prepare(arguments.name, arguments.data_dir, arguments.on_corrupt)
    except USER_ERRORS as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
