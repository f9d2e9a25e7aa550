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
    config.chains.posterior.num_steps = 30
    config.learning.num_steps = 6000
    config.learning.backbone_lr = 5e-4
    config.log.checkpoint_every = 1000
    config.log.sample_every = 1000
    return config
