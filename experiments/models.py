"""The model of an experiment: from its options to `jebm.Model`."""

import dataclasses
import functools
import importlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import jebm
from experiments.configs import CONFIGS
from experiments.errors import ConfigError
from experiments.options import Experiment, flat, nested, read
from experiments.runtime.files import local_path, read_json
from jebm.names import did_you_mean


def model_spec(experiment: Experiment, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns what `jebm.build` takes, from options and the data's image shape."""
    own: dict[str, Any] = {
        "backbone": experiment.backbone,
        "energy": experiment.energy if experiment.prior == "ebm" else None,
        "likelihood": experiment.likelihood,
        "chains": experiment.chains,
        "remat": experiment.remat,
    }
    if experiment.learning.method == "two_stage":
        own |= _first_spec(experiment, image_shape)
    if not experiment.has_encoder:
        unencoded = {k: v for k, v in own["backbone"].items() if k != "encoder_widths"}
        own["backbone"] = unencoded
    return {"image_shape": list(image_shape), **own}


def build_model(experiment: Experiment, image_shape: tuple[int, ...]) -> jebm.Model:
    """Builds the model.

    Raises:
      ConfigError: for what `jebm.build` refuses, and for variables that the learner
        could not keep.
    """
    try:
        model = jebm.build(model_spec(experiment, image_shape))
        params = jax.eval_shape(jebm.init, jax.random.key(0), model)
        jebm.with_compute_dtype(model, experiment.learning.compute_dtype)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error
    if jebm.priors.draws_itself(model):
        raise ConfigError(
            "energy 'prior' is one that tools.priors has learned: it can be sampled "
            "and measured here, and cannot be trained"
        )
    learning = experiment.learning
    known = {"params"}
    # Statistics of batches move in a pass over samples of the encoder, and in no chain.
    if learning.method == "two_stage" or experiment.encoder_draws:
        known |= {"batch_stats"}
    others = params.backbone.keys() - known | params.energy.keys() - {"params"}
    if others:
        steps = experiment.chains["posterior"]["num_steps"]
        raise ConfigError(
            f"learning.method {learning.method!r} with chains.posterior.num_steps="
            f"{steps} does not support variables of kind {sorted(others)}"
        )
    return model


def active_chains(model: jebm.Model) -> dict[str, Any]:
    """Returns the chains that the model runs, of "posterior" and "prior".

    There is no posterior chain where the encoder alone draws, and no chain of a
    Gaussian prior, or of one of `jebm.priors` that draws in its own way.
    """
    chains, posterior = {}, model.chains.posterior
    if posterior is not None and posterior.num_steps:
        chains["posterior"] = posterior
    plain = model.energy is None or jebm.priors.draws_itself(model)
    if not plain and model.chains.prior.num_steps:
        chains["prior"] = model.chains.prior
    return chains


def with_learned_steps(model: jebm.Model, sizes: Mapping[str, Any]) -> jebm.Model:
    """Returns the model to sample with: its chains have the steps of training.

    They have two digits, as each step size is a program of its own. A chain that has
    diverged keeps the model's.
    """
    chains = {
        name: dataclasses.replace(
            getattr(model.chains, name), step_size=float(f"{float(size):.2g}")
        )
        for name, size in sizes.items()
        if np.isfinite(size)
    }
    return dataclasses.replace(
        model, chains=dataclasses.replace(model.chains, **chains)
    )


def stages(experiment: Experiment) -> list[Experiment]:
    """Returns what is trained, in order: of two stages the first, where it is to be."""
    if experiment.learning.method != "two_stage" or experiment.backbone["checkpoint"]:
        return [experiment]
    return [stage_one(experiment), experiment]


def stage_one(experiment: Experiment) -> Experiment:
    """Returns the first of two stages: the Gaussian prior of `backbone.stage_one`.

    It has the data, the seed and the evaluation of the second, in the score of
    anomalies the weights of its own config, and what `backbone.changes` says.

    Raises:
      ConfigError: for a config that is not there, and for changes it has no field for.
    """
    name = experiment.backbone["stage_one"]
    if name not in {file.stem for file in CONFIGS.glob("[!_]*.py")}:
        raise ConfigError(
            f"backbone.stage_one must name a file of experiments/configs, got {name!r}"
        )
    module = importlib.import_module(f"experiments.configs.{name}")
    values = _changed(module.get_config().to_dict(), experiment.changes, name)
    anomaly, own = (
        dict(experiment.eval.evaluators["anomaly"]),
        values["eval"]["anomaly"],
    )
    for weight in ("likelihood_weight", "neighbours_weight", "knn_volume_weight"):
        anomaly[weight] = own[weight]
    if not anomaly["num_neighbours"]:
        anomaly |= {"neighbours_weight": 0.0, "knn_volume_weight": 0.0}
    again = experiment.to_dict()
    shared = {"seed": again["seed"], "data": again["data"], "prior": "gaussian"}
    return read({**values, **shared, "eval": again["eval"] | {"anomaly": anomaly}})


def _changed(values, changes, name):
    """Returns the values of the config `name` with the leaves of `changes` put in."""
    leaves = dict(flat(values))
    for field, value in flat(changes):
        if field not in leaves:
            raise ConfigError(
                f"backbone.changes: {name} has no field {field!r}"
                f"{did_you_mean(field, leaves)}"
            )
        leaves[field] = value
    return nested(leaves)


def _first_spec(experiment, image_shape):
    """Returns the checkpoint's backbone and likelihood, or those of the first stage."""
    checkpoint = experiment.backbone["checkpoint"]
    if checkpoint is None:
        spec = model_spec(stage_one(experiment), image_shape)
    else:
        spec = _read_spec(checkpoint)
    return {name: spec[name] for name in ("backbone", "likelihood")}


@functools.lru_cache(maxsize=1)
def _read_spec(checkpoint):
    file = local_path("backbone.checkpoint", checkpoint) / "model.json"
    if not file.is_file():
        raise ConfigError(
            f"backbone.checkpoint must be the directory of a run or of a converted "
            f"checkpoint, got {checkpoint!r}, which has no model.json"
        )
    spec = read_json(file)
    if missing := {"backbone", "likelihood"} - set(spec):
        raise ConfigError(f"{file} holds no {' and no '.join(sorted(missing))}")
    return spec
