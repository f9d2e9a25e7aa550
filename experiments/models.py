"""Builds the model of a configuration."""

from typing import Any

import jax

import jebm
from experiments.errors import ConfigError
from experiments.rundir.settings import as_json
from experiments.stages import stage_spec
from jebm.names import unknown_name_message


def model_spec(config, image_shape: tuple[int, ...]) -> dict[str, Any]:
    """What `jebm.build` takes, from a configuration and the data's image shape."""
    plain = as_json(config)
    spec = {
        k: plain[k] for k in ("backbone", "energy", "likelihood", "chains", "remat")
    }
    if config.learning.method == "two_stage":
        spec |= stage_spec(config, lambda c: model_spec(c, image_shape))
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
