"""The generator of `mnist_anomaly` with all its latents in one layer, to compare.

python -m tools.anomaly --config=experiments/configs/mnist_anomaly.py
    --config.backbone.stage_one=mnist_anomaly_vae1 --workdir=DIR
"""

from experiments.configs import mnist_anomaly_vae


def get_config():
    """Returns the configuration."""
    config = mnist_anomaly_vae.get_config()
    config.backbone.latent_dims = (32,)
    return config
