"""Joint latent-space energy-based priors for multi-layer generators.

    p(z) = 1/Z exp[ sum_i f_i(z_i) ] prod_i p(z_i | z_{i+1}) p(z_L)

Cui, Wu, Han, "Learning Joint Latent Space EBM Prior Model for Multi-layer Generator",
CVPR 2023, arXiv 2306.06323.
"""

from jebm import (
    annealing,
    backbones,
    energies,
    importance,
    langevin,
    learning,
    likelihoods,
    mala,
    metrics,
    partition,
    priors,
    scores,
    tempering,
    underdamped,
    walkers,
)
from jebm.checkpoints import load, save
from jebm.contract import check_backbone
from jebm.densities import joint_logdensity, prior_logdensity
from jebm.distributions import Normal
from jebm.kernels import MALA, Chains, Langevin, Tempered, Underdamped
from jebm.learning import maximum_likelihood, second_stage, variational
from jebm.model import Model, Params, energy, init, with_compute_dtype
from jebm.pretrained import load_pretrained
from jebm.sampling import Samples, posterior_sample, reconstruct, sample
from jebm.spec import build, to_spec
from jebm.target import LogDensity, logdensity_fn

__version__ = "0.2.0"
__all__ = [
    "MALA",
    "Chains",
    "Langevin",
    "LogDensity",
    "Model",
    "Normal",
    "Params",
    "Samples",
    "Tempered",
    "Underdamped",
    "annealing",
    "backbones",
    "build",
    "check_backbone",
    "energies",
    "energy",
    "importance",
    "init",
    "joint_logdensity",
    "langevin",
    "learning",
    "likelihoods",
    "load",
    "load_pretrained",
    "logdensity_fn",
    "mala",
    "maximum_likelihood",
    "metrics",
    "partition",
    "posterior_sample",
    "prior_logdensity",
    "priors",
    "reconstruct",
    "sample",
    "save",
    "scores",
    "second_stage",
    "tempering",
    "to_spec",
    "underdamped",
    "variational",
    "walkers",
    "with_compute_dtype",
]
