"""Joint latent-space energy-based priors for multi-layer generators.

    p(z) = 1/Z exp[ sum_i f_i(z_i) ] prod_i p(z_i | z_{i+1}) p(z_L)

Cui, Wu, Han, "Learning Joint Latent Space EBM Prior Model for Multi-layer Generator",
CVPR 2023, arXiv 2306.06323.
"""

from jebm import langevin, mala, partition, scores, tempering
from jebm.checkpoints import load
from jebm.contract import check_backbone
from jebm.densities import joint_logdensity, prior_logdensity
from jebm.energies import FunctionEnergy
from jebm.model import Chain, Chains, Model, Params, build, energy, init
from jebm.pretrained import load_pretrained
from jebm.sampling import Samples, posterior_sample, reconstruct, sample

__version__ = "0.1.0"
__all__ = [
    "Chain",
    "Chains",
    "FunctionEnergy",
    "Model",
    "Params",
    "Samples",
    "build",
    "check_backbone",
    "energy",
    "init",
    "joint_logdensity",
    "langevin",
    "load",
    "load_pretrained",
    "mala",
    "partition",
    "posterior_sample",
    "prior_logdensity",
    "reconstruct",
    "sample",
    "scores",
    "tempering",
]
