"""NVAE on CIFAR-10, as published: the backbone of `cifar10_nvae`.

python -m experiments.main --config=experiments/configs/nvae_cifar10.py

All values from the official command (README of the code of arXiv 2007.03898): 8 V100 of
16 GB, 55 hours, published 2.91 bits per dimension with flows. Ours are the steps of the
warm-ups and of the decay, epochs of 50,000 / (8 x 32) steps turned into steps.
"""

from ml_collections import config_dict

from experiments.configs import default

_STEPS_PER_EPOCH = 195


def get_config():
    """Returns the configuration."""
    config = default.get_config()
    config.data.name = config.data.fake_like = "cifar10"
    config.data.augment = ("flip",)
    config.prior = "gaussian"
    config.backbone = config_dict.ConfigDict()
    config.backbone.name = "nvae"
    config.backbone.groups = (30,)
    config.backbone.latent_channels = 20
    config.backbone.width = 128
    config.backbone.encoder_width = 128
    config.backbone.image_halvings = 1
    config.backbone.preprocess_cells = 2
    config.backbone.postprocess_cells = 2
    config.backbone.encoder_cells = 2
    config.backbone.decoder_cells = 2
    config.backbone.num_flows = 1
    config.backbone.squeeze_excitation = True
    config.backbone.residual_posterior = True
    config.backbone.padding = 0
    config.backbone.bits = 8
    config.likelihood = config_dict.ConfigDict()
    config.likelihood.name = "logistic_mixture"
    config.likelihood.num_mixtures = 10
    config.likelihood.bits = 8
    config.chains.posterior.start = "encoder"
    config.chains.posterior.num_steps = 0
    config.learning.method = "variational"
    config.learning.batch_size = 256
    config.learning.num_steps = 400 * _STEPS_PER_EPOCH
    config.learning.optimizer = "adamax"
    config.learning.adam_eps = 1e-3
    config.learning.backbone_lr = 1e-2
    config.learning.final_lr_fraction = 1e-2
    config.learning.warmup_steps = 5 * _STEPS_PER_EPOCH
    config.learning.weight_decay = 3e-4
    config.learning.kl_warmup_steps = 120 * _STEPS_PER_EPOCH
    config.learning.kl_balance = True
    config.learning.spectral_penalty = 1e-2
    config.eval.protocol = "likelihood"
    config.log.checkpoint_every = 1000
    config.log.sample_every = 1000
    return config
