"""NVAE on binarised MNIST: the published command, scaled down to 10 minutes on 2 cores.

python -m experiments.main --config=experiments/configs/nvae_mnist.py

Published (arXiv 2007.03898 and its code) / ours: (10, 5) groups at 8 x 8 and 4 x 4 /
(3, 2), width 32 / 4, 2 cells per group / 1, 3 cells per halving / 1, 20 latent channels
/ 8, batch 200 / 100, 400 epochs / 5. As published: Adamax with a rate of 1e-2, cosine
decay to 1e-4, weight decay 3e-4, divergences warmed up over the first 30% and balanced,
a spectral penalty of 1e-2.
"""

from ml_collections import config_dict

from experiments.configs import default


def get_config():
    """Returns the configuration."""
    config = default.get_config()
    config.data.name = config.data.fake_like = "mnist"
    config.data.binarize = True
    config.prior = "gaussian"
    config.backbone = config_dict.ConfigDict()
    config.backbone.name = "nvae"
    config.backbone.groups = (3, 2)  # finest to coarsest
    config.backbone.latent_channels = 8
    config.backbone.width = 4
    config.backbone.encoder_width = 4
    config.backbone.image_halvings = 2
    config.backbone.preprocess_cells = 1
    config.backbone.postprocess_cells = 1
    config.backbone.encoder_cells = 1
    config.backbone.decoder_cells = 1
    config.backbone.num_flows = 0
    config.backbone.squeeze_excitation = True
    config.backbone.residual_posterior = True
    config.backbone.padding = 2  # 28 x 28 to 32 x 32
    config.likelihood = config_dict.ConfigDict({"name": "bernoulli"})
    config.chains.posterior.start = "encoder"
    config.chains.posterior.num_steps = 0
    config.learning.method = "variational"
    config.learning.num_steps = 3000
    config.learning.optimizer = "adamax"
    config.learning.adam_eps = 1e-3
    config.learning.backbone_lr = 1e-2
    config.learning.final_lr_fraction = 1e-2
    config.learning.warmup_steps = 40
    config.learning.weight_decay = 3e-4
    config.learning.kl_warmup_steps = 900
    config.learning.kl_balance = True
    config.learning.spectral_penalty = 1e-2
    config.eval.protocol = "likelihood"
    config.eval.likelihood.num_images = 500
    config.eval.likelihood.num_samples = 100
    config.eval.likelihood.batch_size = 20
    return config
