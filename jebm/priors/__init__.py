"""Priors of a frozen generator, each a law of the noise behind it: see `base`.

    frozen = priors.freeze(model, params)
    prior = priors.Flow()
    state = prior.init(key, frozen, frozen.draws(key, x))
    state, info = prior.update(key, frozen, state, frozen.draws(key, x))  # and again
    law = priors.Law(prior, frozen, state)
    jebm.sample(key, model, params, 100, prior=law)

Which to choose: docs/priors.md.
"""

from jebm.priors.base import (
    ESTIMATED,
    NORMALISED,
    UNNORMALISED,
    Draws,
    Frozen,
    Gradient,
    Law,
    Prior,
    State,
    freeze,
)
from jebm.priors.diffusion import Diffusion
from jebm.priors.energy import as_model, draws_itself, has_density, law_of
from jebm.priors.flow import Flow
from jebm.priors.flow_proposal import TiltedFlow
from jebm.priors.gaussian import Gaussian
from jebm.priors.joint import Concatenated, Joint
from jebm.priors.lars import LARS
from jebm.priors.mixture import Mixture
from jebm.priors.ncp import NCP
from jebm.priors.noise_contrast import MultiStage
from jebm.priors.pixel import PixelEBM
from jebm.priors.product import product
from jebm.priors.vamp import VampPrior

# By name, in the order of a table.
PRIORS: dict[str, type[Prior]] = {
    "joint": Joint,
    "gaussian": Gaussian,
    "mixture": Mixture,
    "vamp": VampPrior,
    "lars": LARS,
    "ncp": NCP,
    "multi_stage": MultiStage,
    "concatenated": Concatenated,
    "diffusion": Diffusion,
    "flow": Flow,
    "tilted_flow": TiltedFlow,
    "pixel": PixelEBM,
}

__all__ = [
    "ESTIMATED",
    "LARS",
    "NCP",
    "NORMALISED",
    "PRIORS",
    "UNNORMALISED",
    "Concatenated",
    "Diffusion",
    "Draws",
    "Flow",
    "Frozen",
    "Gaussian",
    "Gradient",
    "Joint",
    "Law",
    "Mixture",
    "MultiStage",
    "PixelEBM",
    "Prior",
    "State",
    "TiltedFlow",
    "VampPrior",
    "as_model",
    "draws_itself",
    "freeze",
    "has_density",
    "law_of",
    "product",
]
