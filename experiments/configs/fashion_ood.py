"""Fashion-MNIST against digits and other images from elsewhere, by a joint EBM.

python -m experiments.main --config=experiments/configs/fashion_ood.py
"""

from experiments.configs import fashion


def get_config():
    """Returns the configuration."""
    config = fashion.get_config()
    # Networks that draw clothes and cannot draw digits: half the width of `fashion`.
    config.backbone.decoder_widths = config.backbone.encoder_widths = (192, 192)
    config.learning.num_steps = 8000
    config.eval.protocol = "ood"
    config.eval.num_samples = 2000
    config.eval.ood.outliers = ("mnist", "cifar10", "noise", "constant")
    config.eval.ood.num_calibration = 2000
    return config
