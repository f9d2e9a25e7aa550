"""Grids of samples and of reconstructions."""

import pathlib

import jax

import jebm
from experiments import pictures
from experiments.data.pixels import to_unit
from experiments.rundir import report
from experiments.rundir.settings import variant
from experiments.runs import open_run
from experiments.streams import Role


def sample(config, path: pathlib.Path) -> None:
    """Draws pictures from the run in `path`; chains and seed may be overridden."""
    model, params, step, splits = open_run(config, path)
    folder = path / "samples" / variant(path, config)
    for file in write_samples(config, folder, model, params, splits["test"], step):
        print(f"wrote {file}")
    report.write(path)
    print(f"Look at {path / 'report.html'}")


def write_samples(config, folder, model, params, split, step) -> list[pathlib.Path]:
    """Writes grids of samples and of reconstructions beside their originals.

    The noise depends on the seed alone: pictures of different steps compare, and the
    chains of the tilted prior start from the pictures of the Gaussian one.
    """
    key = jax.random.fold_in(jax.random.key(config.seed), Role.PICTURES)
    key_prior, key_posterior = jax.random.split(key)
    num = config.log.num_samples
    grids = {"gaussian": jebm.sample(key_prior, model, params, num, prior="gaussian").x}
    if model.energy is not None:
        grids["ebm"] = jebm.sample(key_prior, model, params, num).x
    originals = to_unit(split.images[: num // 2])
    grids["reconstruction"] = pictures.beside(
        originals, jebm.reconstruct(key_posterior, model, params, originals)
    )
    files = []
    for name, images in grids.items():
        files.append(folder / f"{name}_{step:07d}.png")
        pictures.save_grid(files[-1], images)
    pictures.mark(config, files)
    return files
