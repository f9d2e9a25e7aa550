"""The generator of `mnist_anomaly` with all latents in one layer, for comparison.

python -m experiments.main --config=experiments/configs/mnist_anomaly_vae1.py

With --config.backbone.stage_one=mnist_anomaly_vae1 `mnist_anomaly` is the latent EBM of
one layer.
"""

from experiments.configs import mnist_anomaly_vae


def get_config():
    """Returns the configuration."""
    config = mnist_anomaly_vae.get_config()
    config.backbone.latent_dims = (32,)
    return config
