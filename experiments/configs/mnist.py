"""MNIST, all ten digits."""

from experiments.configs import default


def get_config():
    """Returns the configuration."""
    config = default.get_config()
    config.data.name = "mnist"
    return config
