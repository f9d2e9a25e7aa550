"""Scores a folder of images with a trained run: a table, and a sheet to look at."""

import csv
import pathlib
import warnings

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments import pictures
from experiments.data import loaders
from experiments.data.folders import list_pictures
from experiments.data.pixels import draw_picture_binary
from experiments.data.sources import Cut, Files, Streamed
from experiments.errors import ConfigError
from experiments.evaluation.layer_scores import terms_of
from experiments.evaluation.registry import create
from experiments.options import Data, Experiment
from experiments.rundir import report
from experiments.runs import Run, open_run
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
_FOLDERS = "folders.json"
_NUM_HELDOUT = 500  # held-out images to compare with, at most
_UNUSUAL = 0.05  # of held-out images score as low
_CAPTION = (
    "Pictures are scored at the size of the model's: what shrinking takes away, fine "
    "noise for instance, no score can see."
)


def score(experiment: Experiment, path: pathlib.Path, folder: pathlib.Path) -> None:
    """Scores the images of `folder` with the run in `path`.

    Writes to scores/ of the run FOLDER.csv, a line per image with every score(k) and
    log-likelihood ratio of `jebm.scores` in nats, and FOLDER.png, the images from the
    most to the least anomalous by minus score(0). `name_of` tells folders of one name
    apart. The yardstick is `heldout_below`, the share of held-out images whose score(0)
    is lower still; it is left out where the data of the run is not there.
    """
    create(experiment)  # refuses options of eval that cannot work
    run = open_run(experiment, path, images=False)
    names, images = read_folder(folder, run.model.image_shape, experiment.data)
    print(f"Scoring {len(names)} images with {path} at step {run.step}.")
    scores = terms_of(run.key(Stream.EVALUATION), run, images).scores
    # Another image has taken the place of one that was skipped.
    kept = np.setdiff1d(np.arange(len(names)), list(images.skipped))
    names, images = [names[i] for i in kept], images.subset(kept)
    scores = tuple(score[kept] for score in scores)
    below = _heldout_below(run, scores[0])
    out = run.folder("scores")
    out.mkdir(parents=True, exist_ok=True)
    name = name_of(out, folder.resolve())
    _note_images(out, name, run.step, images)
    table, sheet = out / f"{name}.csv", out / f"{name}.png"
    _write_table(table, names, scores, below)
    where = readable(str(folder.resolve()))
    caption = f"Images of {where}, from the most to the least anomalous. {_CAPTION}"
    with warnings.catch_warnings():  # no font has the letters of all names
        warnings.filterwarnings("ignore", message="Glyph")
        pictures.save_figure(_sheet(names, images, -scores[0], below), sheet, caption)
    pictures.stamp_all([sheet], run.label)
    print(f"wrote {table}")
    print(f"wrote {sheet}")
    report.write(path)


def _heldout_below(run: Run, scores: np.ndarray) -> np.ndarray | None:
    """Returns the share of held-out images that score lower, [N]; None without data."""
    try:
        images = run.heldout
    except (ConfigError, OSError) as error:
        print(f"warning: not compared with held-out images: {error}")
        return None
    few = images[np.arange(min(_NUM_HELDOUT, len(images)))]
    key = jax.random.fold_in(run.key(Stream.EVALUATION), 1)
    heldout = np.sort(terms_of(key, run, few).scores[0])
    return np.searchsorted(heldout, scores) / len(heldout)


def read_folder(
    folder: pathlib.Path, image_shape: tuple[int, ...], data: Data
) -> tuple[list[str], Streamed]:
    """Finds the images in and below a folder, in alphabetical order.

    They are read as those of `data` are in training: cut to the middle and scaled to
    the model's size, and with `data.binarize` drawn black or white.

    Returns:
      The files, relative to the folder, and uint8 [N, H, W, C], decoded when they are
      indexed; `data.on_corrupt` says what is done about damaged ones.

    Raises:
      ConfigError: if the folder is not there or holds no image.
    """
    if not folder.is_dir():
        raise ConfigError(f"images: {folder} is not a folder")
    height, width, channels = image_shape
    if channels not in (1, 3):
        raise ConfigError(f"images: the model's images have {channels} channels")
    listing = list_pictures(folder)
    if listing.left_out:
        print(listing.left_out)
    if not listing.names:
        raise ConfigError(f"images: there is no image in or below {folder}")
    shape = height, width, channels
    cut = loaders.cut_of(data.name, shape)
    images = Streamed(
        Files(folder, listing.names),
        shape,
        _drawn(cut) if data.binarize else cut,
        data.on_corrupt,
    )
    return listing.names, images


def _drawn(cut: Cut) -> Cut:
    """Cuts likewise, and draws each pixel black or white."""
    return lambda image, place: draw_picture_binary(cut(image, place))


def name_of(out: pathlib.Path, folder: pathlib.Path) -> str:
    """Names the files of a folder's scores, and notes it in folders.json of `out`.

    It is the folder's name, with a digest of its path where another folder of that name
    has been scored.
    """
    known, path = _known(out), str(folder)
    name = short_name(folder.name)
    if name in known and known[name]["folder"] != path:
        name = digest_name(name, path)
    write_json(out / _FOLDERS, known | {name: known.get(name, {"folder": path})})
    return name


def _note_images(out, name, step, images):
    """Notes which images were scored; says whether they were others last time."""
    known = _known(out)
    now = {"step": step, "num_images": len(images), "files": images.marks()}
    before = known[name]
    if before.get("files", now["files"]) != now["files"]:
        print(
            f"{readable(before['folder'])} has changed since step {before['step']} was "
            f"scored: {before['num_images']} images then, {len(images)} now."
        )
    write_json(out / _FOLDERS, known | {name: before | now})


def _known(out):
    """Reads folders.json: by the name of the files, which folder, and its images."""
    file = out / _FOLDERS
    return read_json(file) if file.is_file() else {}


def _write_table(file, names, scores, below=None):
    titles = [f"score_{k}_nats" for k in range(len(scores))]
    titles += [f"llr_{k}_nats" for k in range(1, len(scores))]
    columns = [*scores, *(scores[0] - s for s in scores[1:])]
    if below is not None:
        titles.append("heldout_below")
        columns.append(below)
    # A name that is no text is written by the bytes that the system has.
    encoding = {"encoding": "utf-8", "errors": "surrogateescape"}
    with file.open("w", newline="", **encoding) as opened:
        writer = csv.writer(opened)
        writer.writerow(["file", *titles])
        for name, *values in zip(names, *columns, strict=True):
            writer.writerow([name, *(f"{v:.4f}" for v in values)])


def _sheet(names, images, anomaly, below=None):
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
        image = images[int(i)]
        axis.imshow(np.squeeze(image, -1) if image.shape[-1] == 1 else image,
                    cmap="gray", vmin=0, vmax=255)  # fmt: skip
        # A dollar sign of a name begins no formula.
        title = f"{_short(names[i])}\n{-anomaly[i]:.0f}"
        unusual = below is not None and below[i] < _UNUSUAL
        colour = "#D55E00" if unusual else "black"
        axis.set_title(title, fontsize=6, parse_math=False, color=colour)
    about = (
        f"{shown} of {len(names)} images, most anomalous first, with score(0) in nats"
    )
    if below is not None:
        about += f"\nred: lower than {1 - _UNUSUAL:.0%} of held-out images"
    figure.suptitle(about, fontsize=10)
    return figure


def _short(name):
    """Shortens a name with its folders to fit into a title."""
    name = readable(name)
    return name if len(name) <= 20 else f"{name[:9]}…{name[-10:]}"
