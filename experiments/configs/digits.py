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
    config.chains.posterior.start = "encoder"
    config.chains.posterior.num_steps = 0
    config.learning.method = "variational"
    config.learning.num_steps = 4000
    config.learning.persistent_chains = 1000
    config.learning.persistent_steps = 5
    config.learning.reinit_probability = 0.02
    config.learning.energy_lr = 5e-3
    config.learning.final_lr_fraction = 0.02
    config.log.checkpoint_every = 500
    config.log.sample_every = 500
    return config
