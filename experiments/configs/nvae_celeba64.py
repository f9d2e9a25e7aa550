"""NVAE on CelebA, 64 x 64, as published.

python -m experiments.main --config=experiments/configs/nvae_celeba64.py

All values from the official command (README of the code of arXiv 2007.03898): 8 V100 of
16 GB, 92 hours. Ours are the steps, epochs of 162,770 / (8 x 16) steps turned into
steps.
"""

from experiments.configs import nvae_cifar10

_STEPS_PER_EPOCH = 1271


def get_config():
    """Returns the configuration."""
    config = nvae_cifar10.get_config()
    config.data.name = config.data.fake_like = "celeb_a"
    config.backbone.groups = (20, 10, 5)
    config.backbone.width = 64
    config.backbone.encoder_width = 64
    config.learning.batch_size = 128
    config.learning.num_steps = 90 * _STEPS_PER_EPOCH
    config.learning.warmup_steps = 5 * _STEPS_PER_EPOCH
    config.learning.kl_warmup_steps = 27 * _STEPS_PER_EPOCH
    config.learning.spectral_penalty = 1e-1
    return config
