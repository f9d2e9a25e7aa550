"""MNIST, all ten digits.

python -m experiments.main --config=experiments/configs/mnist.py
"""

from experiments.configs import default


def get_config():
    """Returns the configuration."""
    config = default.get_config()
    config.data.name = config.data.fake_like = "mnist"
    config.backbone.prior_widths = (100,)
    config.likelihood.scale = 0.2
    config.chains.prior.num_steps = 100
    config.chains.prior.step_size = 0.3
    config.chains.posterior.start = "encoder"
    config.chains.posterior.num_steps = 0
    config.learning.method = "variational"
    config.learning.num_steps = 16_000
    # Few chains, so that each is soon visited again, and seldom begun anew: they stay
    # with the law as it moves, and it settles as the rate falls. (docs/exact_law.md)
    config.learning.persistent_chains = 1000
    config.learning.persistent_steps = 10
    config.learning.reinit_probability = 0.005
    config.learning.energy_lr = 2e-3
    config.learning.final_lr_fraction = 0.02
    config.eval.exact_length = 20
    config.log.checkpoint_every = 1000
    config.log.sample_every = 1000
    return config
