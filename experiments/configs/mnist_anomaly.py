"""MNIST with one digit held out of training, to be told by its score.

python -m experiments.main --config=experiments/configs/mnist_anomaly.py
"""

from experiments.configs import mnist


def get_config():
    """Returns the configuration."""
    config = mnist.get_config()
    config.data.heldout_digit = 1
    config.eval.protocol = "anomaly"
    return config
