"""MNIST with a ladder of three layers and two-way inference.

python -m experiments.main --config=experiments/configs/mnist_ladder.py
"""

from ml_collections import config_dict

from experiments.configs import mnist


def get_config():
    """Returns the configuration."""
    return on_ladder(mnist.get_config())


def on_ladder(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Returns `config` with a ladder for a backbone, and one energy of all layers."""
    config.backbone = config_dict.ConfigDict()
    config.backbone.name = "ladder"
    config.backbone.latent_shapes = ((4,), (8,), (16,))  # bottom to top
    config.backbone.width = 256
    config.backbone.encoder_widths = (512, 256, 256)
    config.backbone.activation = "gelu"
    config.backbone.log_scale_bound = 3.0
    # The decoder reads every layer, so what must go together is spread over them.
    config.energy.name = "joint"
    return config
