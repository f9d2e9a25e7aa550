"""scikit-learn's 1,797 handwritten digits, 8x8: the experiment of the README.

python -m experiments.main --config=experiments/configs/digits.py
"""

from experiments.configs import default


def get_config():
    """Returns the configuration."""
    config = default.get_config()
    config.backbone.latent_dims = (10, 5)
    config.backbone.prior_widths = (50,)
    config.energy.widths = (100, 100)
    config.likelihood.scale = 0.1
    config.chains.posterior.num_steps = 40
    config.chains.posterior.step_size = 0.07
    config.learning.num_steps = 1500
    config.learning.energy_lr = 1e-3
    config.log.checkpoint_every = 500
    config.log.sample_every = 500
    return config
