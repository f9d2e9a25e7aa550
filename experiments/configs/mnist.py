"""MNIST, all ten digits.

python -m experiments.main --config=experiments/configs/mnist.py
"""

from experiments.configs import default


def get_config():
    """Returns the configuration."""
    config = default.get_config()
    config.data.name = "mnist"
    config.backbone.prior_widths = (100,)
    config.likelihood.scale = 0.2
    config.chains.prior.num_steps = 60
    config.chains.posterior.num_steps = 60
    config.chains.posterior.step_size = 0.06
    config.learning.num_steps = 2500
    config.learning.energy_lr = 1e-3
    config.log.checkpoint_every = 500
    config.log.sample_every = 500
    return config
