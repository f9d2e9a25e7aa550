"""Fashion-MNIST against digits and other images from elsewhere.

python -m experiments.main --config=experiments/configs/fashion_ood.py
"""

from experiments.configs import mnist_ood


def get_config():
    """Returns the configuration."""
    config = mnist_ood.get_config()
    config.data.name = config.data.fake_like = "fashion_mnist"
    config.eval.ood.outliers = ("mnist", "cifar10", "noise", "constant")
    return config
