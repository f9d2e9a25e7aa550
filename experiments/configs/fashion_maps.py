"""A VAE of Fashion-MNIST whose lower layers are maps: of `fashion_maps_ood`.

python -m experiments.main --config=experiments/configs/fashion_maps.py

It reconstructs nearly any image through the maps, as deep models of photographs do, so
that the likelihood alone does not tell where an image is from (docs/scores.md).
"""

from experiments.configs import fashion_ladder


def get_config():
    """Returns the configuration."""
    config = fashion_ladder.get_config()
    config.prior = "gaussian"
    config.backbone.latent_shapes = ((14, 14, 4), (7, 7, 8), (16,))  # bottom to top
    config.backbone.width = 16
    config.backbone.encoder_widths = (16, 16, 128)
    # Sharp enough that the maps are used, and not so sharp that they are all that is.
    config.likelihood.scale = 0.1
    config.learning.num_steps = 4000
    return config
