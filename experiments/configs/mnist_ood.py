"""MNIST against other images: out-of-distribution scores of a ladder.

python -m experiments.main --config=experiments/configs/mnist_ood.py
"""

from experiments.configs import mnist_ladder, mnist_uncorrected


def get_config():
    """Returns the configuration."""
    config = mnist_ladder.on_ladder(mnist_uncorrected.get_config())
    config.eval.protocol = "ood"
    config.eval.ood.outliers = ("cifar10", "noise", "inverted", "rotated", "constant")
    config.eval.num_samples = 2000
    return config
