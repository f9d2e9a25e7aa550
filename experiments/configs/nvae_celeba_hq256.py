"""NVAE on CelebA-HQ, 256 x 256, as published: the backbone of `celeba_hq256`.

python -m experiments.main --config=experiments/configs/nvae_celeba_hq256.py

All values from the official command (README of the code of arXiv 2007.03898): 24 V100
of 32 GB, 94 hours, published .70 bits per dimension with flows at 5 bits. Ours are the
steps, epochs of 27,000 / (24 x 4) steps turned into steps.
"""

from experiments.configs import nvae_cifar10

_STEPS_PER_EPOCH = 281


def get_config():
    """Returns the configuration."""
    config = nvae_cifar10.get_config()
    config.data.name = config.data.fake_like = "celeb_a_hq/256"
    config.backbone.groups = (16, 8, 4, 4, 4)
    config.backbone.width = 30
    config.backbone.encoder_width = 30
    config.backbone.num_flows = 2
    config.backbone.bits = 5
    config.likelihood.bits = 5
    config.learning.batch_size = 96
    config.learning.num_steps = 300 * _STEPS_PER_EPOCH
    config.learning.warmup_steps = 5 * _STEPS_PER_EPOCH
    config.learning.kl_warmup_steps = 90 * _STEPS_PER_EPOCH
    config.learning.spectral_penalty_start = 1.0
    return config
