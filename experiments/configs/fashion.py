"""Fashion-MNIST: clothes instead of digits, with the settings of `mnist`.

python -m experiments.main --config=experiments/configs/fashion.py
"""

from experiments.configs import mnist


def get_config():
    """Returns the configuration."""
    config = mnist.get_config()
    config.data.name = config.data.fake_like = "fashion_mnist"
    return config
