"""Scores a folder of images with a trained run: a table, and a sheet to look at."""

import csv
import pathlib

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, UnidentifiedImageError

from experiments import pictures
from experiments.data import sources
from experiments.errors import ConfigError
from experiments.evaluation.layer_scores import scores_of
from experiments.evaluation.registry import create
from experiments.options import Experiment
from experiments.rundir import report
from experiments.runs import open_run
from experiments.runtime.files import (
    digest_name,
    read_json,
    readable,
    short_name,
    write_json,
)
from experiments.streams import Stream

_COLUMNS, _ROWS = 10, 10  # at most
_NARROWEST = 5  # inches, of a sheet


def score(experiment: Experiment, path: pathlib.Path, folder: pathlib.Path) -> None:
    """Scores the images of `folder` with the run in `path`.

    Writes to scores/ of the run FOLDER.csv, a line per image with every score(k) and
    log-likelihood ratio of `jebm.scores` in nats, and FOLDER.png, the images from the
    most to the least anomalous by minus score(0). `name_of` tells folders of one
    name apart.
    """
    create(experiment)  # refuses options of eval that cannot work
    run = open_run(experiment, path, images=False)
    files, images = read_folder(folder, run.model.image_shape)
    print(f"Scoring {len(files)} images with {path} at step {run.step}.")
    scores = scores_of(run.key(Stream.EVALUATION), run, images)
    out = run.folder("scores")
    out.mkdir(parents=True, exist_ok=True)
    name = name_of(out, folder.resolve())
    table, sheet = out / f"{name}.csv", out / f"{name}.png"
    _write_table(table, files, scores)
    where = readable(str(folder.resolve()))
    caption = f"Images of {where}, from the most to the least anomalous"
    pictures.save_figure(_sheet(files, images, -scores[0]), sheet, caption)
    pictures.stamp_all([sheet], run.label)
    print(f"wrote {table}")
    print(f"wrote {sheet}")
    report.write(path)


def read_folder(
    folder: pathlib.Path, image_shape: tuple[int, int, int]
) -> tuple[list[pathlib.Path], np.ndarray]:
    """Reads all images of a folder, in alphabetical order.

    Images are converted to grey or RGB, as the model has it, and those of another size
    are scaled to the model's with antialiasing. What is no image is left out.

    Returns:
      The files, and float32 [N, H, W, C] in [0, 1].

    Raises:
      ConfigError: if the folder is not there, holds no image, or one is damaged.
    """
    if not folder.is_dir():
        raise ConfigError(f"images: {folder} is not a folder")
    height, width, channels = image_shape
    if channels not in (1, 3):
        raise ConfigError(f"images: the model's images have {channels} channels")
    files, images = [], []
    for file in sorted(p for p in folder.iterdir() if p.is_file()):
        try:
            with Image.open(file) as opened:
                image = sources.as_mode(opened, channels)
        except UnidentifiedImageError:
            if Image.registered_extensions().get(file.suffix.lower()) in Image.OPEN:
                raise ConfigError(f"images: {file} cannot be read: no image") from None
            continue
        except (OSError, ValueError) as error:
            raise ConfigError(f"images: {file} cannot be read: {error}") from error
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        files.append(file)
        images.append(np.asarray(image, np.float32).reshape(image_shape) / 255)
    if not files:
        raise ConfigError(f"images: there is no image in {folder}")
    return files, np.stack(images)


def name_of(out: pathlib.Path, folder: pathlib.Path) -> str:
    """Names the files of a folder's scores, and notes it in folders.json of `out`.

    It is the folder's name, with a digest of its path where another folder of that name
    has been scored.
    """
    file, path = out / "folders.json", str(folder)
    known = read_json(file) if file.is_file() else {}
    name = short_name(folder.name)
    if known.get(name, path) != path:
        name = digest_name(name, path)
    write_json(file, known | {name: path})
    return name


def _write_table(file, files, scores):
    names = [f"score_{k}_nats" for k in range(len(scores))]
    names += [f"llr_{k}_nats" for k in range(1, len(scores))]
    columns = [*scores, *(scores[0] - s for s in scores[1:])]
    # A name that is no text is written by the bytes that the system has.
    encoding = {"encoding": "utf-8", "errors": "surrogateescape"}
    with file.open("w", newline="", **encoding) as opened:
        writer = csv.writer(opened)
        writer.writerow(["file", *names])
        for image_file, *values in zip(files, *columns, strict=True):
            writer.writerow([image_file.name, *(f"{v:.4f}" for v in values)])


def _sheet(files, images, anomaly):
    """Draws up to 100 images; of more, evenly spread over the order."""
    order = np.argsort(-anomaly)
    shown = min(len(order), _COLUMNS * _ROWS)
    chosen = order[np.linspace(0, len(order) - 1, shown).round().astype(int)]
    columns = min(shown, _COLUMNS)
    rows = -(-shown // columns)
    width = max(1.25, _NARROWEST / columns)  # inches, of an image
    size = (width * columns, (width + 0.3) * rows + 0.7)
    figure = Figure(size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, i in zip(axes.flat, chosen, strict=False):
        axis.imshow(np.squeeze(images[i], -1) if images.shape[-1] == 1 else images[i],
                    cmap="gray", vmin=0, vmax=1)  # fmt: skip
        name = readable(files[i].name)
        name = name if len(name) <= 16 else f"{name[:7]}…{name[-8:]}"
        # A dollar sign of a name begins no formula.
        axis.set_title(f"{name}\n{anomaly[i]:.0f}", fontsize=6, parse_math=False)
    figure.suptitle(
        f"{shown} of {len(files)} images, most anomalous first: minus score(0) in nats",
        fontsize=10,
    )
    return figure
