"""scikit-learn's 1,797 handwritten digits, 8x8: the experiment of the README.

python -m experiments.main --config=experiments/configs/digits.py
"""

from experiments.configs import default


def get_config():
    """Returns the configuration."""
    config = default.get_config()
    config.backbone.latent_dims = (10, 5)
    config.backbone.prior_widths = (50,)
    config.likelihood.scale = 0.1
    config.learning.num_steps = 2200
    config.log.checkpoint_every = 1100
    config.log.sample_every = 550
    return config
