"""NVAE on LSUN church, 64 x 64, as VAEBM trained it: the backbone of `lsun`.

python -m experiments.main --config=experiments/configs/nvae_lsun.py

All values from the official command (README of the code of arXiv 2010.00654), whose
decoder is Gaussian. Ours are the steps, epochs of 126,227 / (8 x 32) steps turned into
steps.
"""

from ml_collections import config_dict

from experiments.configs import nvae_cifar10

_STEPS_PER_EPOCH = 493


def get_config():
    """Returns the configuration."""
    config = nvae_cifar10.get_config()
    config.data.name = config.data.fake_like = "lsun/church_outdoor"
    config.data.augment = ("flip", "crop")
    config.backbone.groups = (5, 5, 5)
    config.backbone.width = 48
    config.backbone.encoder_width = 48
    config.likelihood = config_dict.ConfigDict({"name": "learned_gaussian"})
    config.learning.batch_size = 256
    config.learning.num_steps = 60 * _STEPS_PER_EPOCH
    config.learning.warmup_steps = _STEPS_PER_EPOCH
    config.learning.kl_warmup_steps = 18 * _STEPS_PER_EPOCH
    config.learning.spectral_penalty = 1e-1
    return config
