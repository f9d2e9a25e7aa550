"""A plain VAE on binarised MNIST, of the size of `nvae_mnist`, for comparison.

python -m experiments.main --config=experiments/configs/vae_mnist.py
"""

from ml_collections import config_dict

from experiments.configs import nvae_mnist


def get_config():
    """Returns the configuration."""
    config = nvae_mnist.get_config()
    config.backbone = config_dict.ConfigDict()
    config.backbone.name = "vector"
    config.backbone.latent_dims = (32,)
    config.backbone.decoder_widths = (96,)
    config.backbone.encoder_widths = (96,)
    config.learning.optimizer = "adam"
    config.learning.adam_eps = 1e-8
    config.learning.backbone_lr = 1e-3
    config.learning.num_steps = 60000
    config.learning.weight_decay = 0.0
    config.learning.kl_balance = False
    config.learning.kl_warmup_steps = 6000
    config.learning.spectral_penalty = 0.0
    config.log.every = 500
    config.log.checkpoint_every = 10000
    config.log.sample_every = 10000
    config.log.diagnose_every = 60000
    return config
