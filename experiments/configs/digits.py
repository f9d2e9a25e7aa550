"""scikit-learn's 1,797 handwritten digits, 8x8: the experiment of the README."""

from experiments.configs import default


def get_config():
    """Returns the configuration."""
    config = default.get_config()
    return config
