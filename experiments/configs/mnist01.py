"""The paper's toy: MNIST's zeros and ones, two layers of 2-D latents."""

from experiments.configs import mnist


def get_config():
    """Returns the configuration."""
    config = mnist.get_config()
    config.data.labels = (0, 1)
    config.backbone.latent_dims = (2, 2)
    return config
