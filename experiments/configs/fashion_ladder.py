"""Fashion-MNIST with the ladder of `mnist_ladder`: three layers, two-way inference.

python -m experiments.main --config=experiments/configs/fashion_ladder.py
"""

from experiments.configs import fashion, mnist_ladder


def get_config():
    """Returns the configuration."""
    return mnist_ladder.on_ladder(fashion.get_config())
