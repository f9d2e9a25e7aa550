"""Opens a trained run, and draws pictures from it."""

import math
import pathlib
import warnings
from typing import Any

import jax
import numpy as np

import jebm
from experiments import datasets, pictures, report, two_stage, workdir
from experiments.command_line import ConfigError
from experiments.learning import Role
from jebm import checkpoints
from jebm.names import unknown_name_message


def sample(config, path: pathlib.Path) -> None:
    """Draws pictures from the run in `path`; chains and seed may be overridden."""
    model, params, step, splits = open_run(config, path)
    folder = path / "samples" / workdir.variant(path, config)
    for file in write_samples(config, folder, model, params, splits["test"], step):
        print(f"wrote {file}")
    report.write(path)
    print(f"Look at {path / 'report.html'}")


def open_run(config, path: pathlib.Path):
    """Model, averaged parameters, their step, and data of the run in `path`."""
    check_log(config)
    workdir.check_settings(path, config, "read")
    splits = datasets.load(**config.data)
    model = read_model(config, path)
    template = jax.eval_shape(jebm.init, jax.random.key(0), model)
    step, items = restore_aloud(path, {"ema": template})
    return model, items["ema"], step, splits


def read_model(config, path: pathlib.Path) -> jebm.Model:
    """The model that model.json of `path` holds, with the chains of config."""
    spec = workdir.read_json(path / "model.json")
    own = {"chains": workdir.plain(config)["chains"], "remat": config.remat}
    try:
        return jebm.build(spec | own)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ConfigError(f"{path / 'model.json'}: {error}") from error


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
    originals = datasets.to_unit(split.images[: num // 2])
    grids["reconstruction"] = pictures.beside(
        originals, jebm.reconstruct(key_posterior, model, params, originals)
    )
    files = []
    for name, images in grids.items():
        files.append(folder / f"{name}_{step:07d}.png")
        pictures.save_grid(files[-1], images)
    pictures.mark(config, files)
    return files


def in_batches(key, draw, indices: np.ndarray, batch_size: int):
    """Joins `draw(key, indices)` over batches of equal size: one compile.

    The memory of the chains is that of one batch. Returns NumPy arrays.
    """
    padded = np.resize(indices, -(-len(indices) // batch_size) * batch_size)
    drawn = [
        jax.device_get(draw(jax.random.fold_in(key, i), batch))
        for i, batch in enumerate(padded.reshape(-1, batch_size))
    ]
    return jax.tree.map(lambda *a: np.concatenate(a)[: len(indices)], *drawn)


@jax.jit
def energies_along(model: jebm.Model, params: jebm.Params, traced) -> jax.Array:
    """E(z), [T, B], of latents [T, B, *shape_i]: one time after the other."""
    return jax.lax.map(lambda z: jebm.energy(model, params, z), traced)


def model_spec(config, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """What `jebm.build` takes, from a configuration and the data's image shape."""
    plain = workdir.plain(config)
    spec = {
        k: plain[k] for k in ("backbone", "energy", "likelihood", "chains", "remat")
    }
    if config.learning.method == "two_stage":
        spec |= two_stage.model_spec(config, lambda c: model_spec(c, image_shape))
    if config.prior == "gaussian":
        spec["energy"] = None
    if config.learning.method == "mle":
        spec["backbone"].pop("encoder_widths", None)
    return {"image_shape": list(image_shape), **spec}


def build_model(config, image_shape: tuple[int, ...]) -> jebm.Model:
    """Builds the model; what `jebm.build` refuses is the user's mistake."""
    if config.prior not in ("ebm", "gaussian"):
        raise ConfigError(
            unknown_name_message("prior", config.prior, ("ebm", "gaussian"))
        )
    try:
        model = jebm.build(model_spec(config, image_shape))
        params = jax.eval_shape(jebm.init, jax.random.key(0), model)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error
    known = {"params"}
    alone = model.chains.posterior.num_steps == 0  # no pass over a chain's samples
    frozen = config.learning.method == "two_stage"
    if frozen or (config.learning.method == "variational" and alone):
        known |= {"batch_stats"}
    others = params.backbone.keys() - known | params.energy.keys() - {"params"}
    if others:
        raise ConfigError(
            f"learning.method {config.learning.method!r} with "
            f"chains.posterior.num_steps={model.chains.posterior.num_steps} does not "
            f"support variables of kind {sorted(others)}"
        )
    return model


def check_log(config) -> None:
    """Refuses a seed and settings of log that cannot work, naming the field."""
    log = config.log
    if not 0 <= config.seed < 2**32:
        raise ConfigError(f"seed must lie in [0, 2**32), got {config.seed}")
    intervals = ("checkpoint_every", "sample_every", "diagnose_every")
    # The guard goes back behind the newest checkpoint, and one more may be damaged.
    least = {"every": 1, **dict.fromkeys(intervals, 1), "keep": 3}
    for name, low in least.items():
        if log[name] < low:
            raise ConfigError(f"log.{name} must be at least {low}, got {log[name]}")
    for name in intervals:
        if log[name] % log.every:
            raise ConfigError(
                f"log.{name} must be a multiple of log.every, so that what is saved "
                f"and drawn has been checked, got {log[name]} and {log.every}"
            )
    root = math.isqrt(max(log.num_samples, 0))
    if root**2 != log.num_samples or root % 2 or not root:
        raise ConfigError(
            f"log.num_samples must be an even square, got {log.num_samples}"
        )


def restore_aloud(path, templates):
    """`checkpoints.restore`, its warnings printed as sentences."""
    with warnings.catch_warnings(record=True) as passed_over:
        warnings.simplefilter("always", UserWarning)
        restored = checkpoints.restore(path, templates)
    for warning in passed_over:
        print(f"warning: {warning.message}")
    return restored
