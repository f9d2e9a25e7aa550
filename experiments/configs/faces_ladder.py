"""Faces, or any folder of aligned photographs: a convolutional ladder, for two cores.

python -m experiments.main --config=experiments/configs/faces_ladder.py
    --config.data.data_dir=PICTURES

The Gaussian-prior generator that `faces` tilts. All settings are ours.
"""

from ml_collections import config_dict

from experiments.configs import default


def get_config():
    """Returns the configuration."""
    config = default.get_config()
    config.data.name = "folder"
    config.data.image_shape = (32, 32, 3)
    config.data.fake_like = "cifar10"  # of that shape
    config.data.augment = ("flip",)
    config.prior = "gaussian"
    config.backbone = config_dict.ConfigDict()
    config.backbone.name = "ladder"
    # Bottom to top, two layers a resolution: what one of them cannot know of the other
    # units of its own, the next one can.
    config.backbone.latent_shapes = (
        (16, 16, 4), (16, 16, 4), (8, 8, 8), (8, 8, 8), (4, 4, 16), (4, 4, 16), (64,),
    )  # fmt: skip
    config.backbone.width = 48
    config.backbone.encoder_widths = (48, 48, 48, 48, 48, 48, 256)
    config.backbone.activation = "silu"
    config.backbone.log_scale_bound = 3.0
    config.likelihood.scale = 0.08
    config.chains.posterior.start = "encoder"
    config.chains.posterior.num_steps = 0
    config.learning.method = "variational"
    config.learning.batch_size = 64
    config.learning.num_steps = 10_000
    config.learning.kl_warmup_steps = 1000
    config.learning.kl_balance = True
    config.learning.final_lr_fraction = 0.05
    config.log.checkpoint_every = 500
    config.log.sample_every = 1000
    config.log.num_walkers = 0
    return config
