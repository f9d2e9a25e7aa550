"""A trained run, opened: what evaluation, figures and scores read."""

import contextlib
import dataclasses
import functools
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jebm
from experiments.data import datasets
from experiments.data.loaders import Split
from experiments.data.pixels import draw_binary
from experiments.errors import ConfigError
from experiments.options import Experiment
from experiments.rundir import data_note
from experiments.rundir.settings import (
    check_settings,
    folder_name,
    overrides,
    read_settings,
    variant,
)
from experiments.runtime.files import read_json
from jebm import checkpoints


@dataclasses.dataclass(frozen=True)
class Run:
    """A run at one of its steps.

    Attributes:
      path: its directory.
      experiment: its options; chains and seed may be others than it was trained with.
      model: the model.
      params: its averaged parameters.
      step: steps of training that they have seen.
      splits: of the data, "train" and "test".
    """

    path: pathlib.Path
    experiment: Experiment
    model: jebm.Model
    params: jebm.Params
    step: int
    splits: Mapping[str, Split]

    @property
    def heldout(self) -> Any:
        """Returns the held-out images, uint8 [N, H, W, C]."""
        return self.splits["test"].images

    @functools.cached_property
    def training(self) -> Any:
        """Returns the training images as the model sees them, uint8 [N, H, W, C].

        Those that are drawn black or white anew at every step are drawn once.
        """
        images = self.splits["train"].images
        if not self.experiment.data.binarize:
            return images
        return draw_binary(np.random.default_rng(0), images)

    def key(self, stream: int) -> jax.Array:
        """Returns the key of a stream of noise of `experiments.streams`."""
        return jax.random.fold_in(jax.random.key(self.experiment.seed), stream)

    @property
    def label(self) -> str:
        """Returns what its pictures must say of made-up data; "" for real data."""
        data = self.experiment.data
        return datasets.described(data) if data.is_fake else ""

    @functools.cached_property
    def variant(self) -> str:
        """Names the settings that differ from those of training; "" for none."""
        return variant(self.path, self.experiment)

    def folder(self, name: str) -> pathlib.Path:
        """Returns the folder of its files of a kind; each variant has its own."""
        return self.path / name / self.variant_name

    def demand_density(self) -> None:
        """Refuses what needs a density, where the prior has none.

        Raises:
          ConfigError: naming the prior, one of `jebm.priors`.
        """
        if not jebm.priors.has_density(self.model):
            name = self.experiment.energy["prior"]["name"]
            raise ConfigError(
                f"the prior {name!r} of {self.path} has no density: it can be sampled, "
                "and there are no scores and no log-likelihoods"
            )

    @property
    def variant_name(self) -> str:
        """Returns the variant as a name of files."""
        return folder_name(self.path, self.variant)


class Later(Mapping[str, Split]):
    """Splits that are read when they are first asked for."""

    def __init__(self, load: Callable[[], Mapping[str, Split]]):
        self._load = functools.cache(load)

    def __getitem__(self, name: str) -> Split:
        return self._load()[name]

    def __iter__(self):
        return iter(self._load())

    def __len__(self):
        return len(self._load())


def open_run(experiment: Experiment, path: pathlib.Path, images: bool = True) -> Run:
    """Opens the run in `path`, and says which of its settings are overridden.

    Args:
      experiment: the settings asked for.
      path: the directory of the run.
      images: whether its data are read now, and not when they are first asked for.

    Raises:
      ConfigError: if there is none, or its settings are others in what may not change.
    """
    check_settings(path, experiment, "read")
    for text in overrides(path, experiment):
        print(f"Overridden: {text}.")
    splits: Mapping[str, Split]
    if images:
        splits = data_note.load(path, experiment.data)
    else:
        splits = Later(lambda: datasets.load(experiment.data))
        with contextlib.suppress(ConfigError, OSError):  # told when they are asked for
            data_note.warn(path, experiment.data)
    model = read_model(experiment, path)
    template = jax.eval_shape(jebm.init, jax.random.key(0), model)
    step, items = restore_aloud(path, {"ema": template})
    params = jax.tree.map(jnp.asarray, items["ema"])
    return Run(path, experiment, model, params, step, splits)


def read_model(experiment: Experiment, path: pathlib.Path) -> jebm.Model:
    """Reads the model from model.json in `path`, with the chains of `experiment`.

    A chain of the kind, the space and the step that the run began with has the step
    that training has come to.
    """
    spec, begun = read_json(path / "model.json"), read_settings(path)["chains"]

    def chain(name, asked):
        if any(asked[k] != begun[name].get(k) for k in ("name", "space", "step_size")):
            return asked
        return {**asked, "step_size": spec["chains"][name]["step_size"]}

    chains = {name: chain(name, asked) for name, asked in experiment.chains.items()}
    own = {"chains": chains, "remat": experiment.remat}
    try:
        return jebm.build(spec | own)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ConfigError(f"{path / 'model.json'}: {error}") from error


def restore_aloud(path: pathlib.Path, templates: dict[str, Any]):
    """Calls `checkpoints.restore` and prints its warnings as sentences."""
    with warnings.catch_warnings(record=True) as passed_over:
        warnings.simplefilter("always", UserWarning)
        restored = checkpoints.restore(path, templates)
    for warning in passed_over:
        print(f"warning: {warning.message}")
    return restored
