"""MNIST in two stages: a ladder VAE first, then the energy that tilts its prior.

python -m experiments.main --config=experiments/configs/mnist_ladder_ebm.py

The first stage is `mnist_ladder` without its energy. To use a run that is there,
--config.backbone.checkpoint=RUN.
"""

from experiments.configs import default, mnist


def get_config():
    """Returns the configuration."""
    config = mnist.get_config()
    config.backbone = default.two_stages("mnist_ladder")
    config.learning.method = "two_stage"
    config.energy.name = "joint"
    config.energy.widths = (256, 256, 256)
    # After 8,000 the exact law is at nearly twice the distance of the run's own chain.
    config.learning.num_steps = 16_000
    config.chains.prior.num_steps = 600
    config.eval.exact_length = 10
    return config
