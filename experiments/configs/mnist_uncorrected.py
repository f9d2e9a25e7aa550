"""MNIST, all ten digits, with uncorrected Langevin chains, as in the paper.

python -m experiments.main --config=experiments/configs/mnist_uncorrected.py
"""

from experiments.configs import default, mnist


def get_config():
    """Returns the configuration."""
    config = default.uncorrected(mnist.get_config())
    config.chains.prior.num_steps = 200
    config.learning.persistent_steps = 20
    config.learning.num_steps = 8000
    config.learning.persistent_chains = 4000
    config.learning.reinit_probability = 0.025
    config.learning.final_lr_fraction = 0.1
    config.learning.gradient_penalty = 0.01
    config.eval.exact_length = 10
    return config
