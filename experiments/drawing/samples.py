"""Grids of samples, and of reconstructions beside their originals."""

import pathlib
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

import jebm
from experiments import pictures
from experiments.data.pixels import to_unit
from experiments.drawing.figures import draw_figure
from experiments.errors import ConfigError
from experiments.options import Experiment
from experiments.rundir import report
from experiments.runs import Run, open_run
from experiments.streams import Stream

_CAPTIONS = {
    "ebm": "Samples of the model: of its energy-based prior",
    "gaussian": "Samples of the Gaussian prior of the same generator",
    "reconstruction": "Held-out images, each followed by its reconstruction",
}


class Samples(NamedTuple):
    """Images in [0, 1], each [num, H, W, C].

    Attributes:
      gaussian: samples of the Gaussian prior.
      ebm: samples of the tilted prior; None where the model has no energy.
      reconstruction: held-out images, each followed by its reconstruction; None where
        they cannot be read.
    """

    gaussian: np.ndarray
    ebm: np.ndarray | None
    reconstruction: np.ndarray | None


def sample(experiment: Experiment, path: pathlib.Path) -> None:
    """Draws pictures from the run in `path`; chains and seed may be overridden.

    Without the images of its data it draws samples of the priors alone, and says so.
    """
    for file in write_samples(open_run(experiment, path, images=False)):
        print(f"wrote {file}")
    report.write(path)


def draw_progress(run: Run) -> None:
    """Draws samples and curves of a run that goes on; training writes its page."""
    write_samples(run, run.path / "samples")
    draw_figure("training", run)


def write_samples(run: Run, folder: pathlib.Path | None = None) -> list[pathlib.Path]:
    """Writes the grids to `folder`, by default samples/ of the run; returns the files.

    The noise depends on the seed alone: pictures of different steps compare, and the
    chains of the tilted prior start from the pictures of the Gaussian one.
    """
    folder = run.folder("samples") if folder is None else folder
    files = []
    for name, picture in draw(compute(run.key(Stream.PICTURES), run)).items():
        files.append(folder / f"{name}_{run.step:07d}.png")
        pictures.save(picture, files[-1], _CAPTIONS[name])
    pictures.stamp_all(files, run.label)
    return files


def compute(key: jax.Array, run: Run) -> Samples:
    """Draws log.num_samples images of each prior, and reconstructs half as many."""
    key_prior, key_posterior = jax.random.split(key)
    model, params, num = run.model, run.params, run.experiment.log.num_samples
    gaussian = jebm.sample(key_prior, model, params, num, prior="gaussian").x
    ebm = None
    if model.energy is not None:
        ebm = np.asarray(jebm.sample(key_prior, model, params, num).x)
    return Samples(
        np.asarray(gaussian), ebm, _reconstruct(key_posterior, run, num // 2)
    )


def _reconstruct(key, run, num):
    """Returns pairs of held-out images and their reconstructions."""
    try:
        originals = to_unit(run.heldout[:num])
    except (ConfigError, OSError) as error:  # samples of the priors need no images
        print(f"No reconstructions: {error}.")
        return None
    again = jebm.reconstruct(key, run.model, run.params, originals)
    return pictures.beside(originals, again)


def draw(samples: Samples) -> dict[str, Image.Image]:
    """Draws a grid of each kind of images, by name."""
    return {
        name: pictures.grid(images, group=2 if name == "reconstruction" else 1)
        for name, images in samples._asdict().items()
        if images is not None
    }
