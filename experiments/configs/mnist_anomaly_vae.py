"""The generator of `mnist_anomaly`: a VAE of two layers with a Gaussian prior.

python -m experiments.main --config=experiments/configs/mnist_anomaly_vae.py

It has many latents, and a shallow encoder, which maps unseen images away from training
images. Both were chosen on other digits than those of the table (docs/anomaly.md).
"""

from experiments.configs import mnist_uncorrected


def get_config():
    """Returns the configuration."""
    config = mnist_uncorrected.get_config()
    config.prior = "gaussian"
    config.data.heldout_class = 1
    config.data.augment = ("affine",)
    config.eval.protocol = "anomaly"
    config.eval.anomaly.likelihood_weight = 0.0
    config.eval.anomaly.num_augmentations = 64
    config.eval.anomaly.num_neighbours = 5
    config.eval.anomaly.neighbours_weight = 0.7
    config.eval.anomaly.knn_volume_weight = 2.0
    config.eval.anomaly.posterior_start = "mode"
    config.eval.num_posterior_samples = 1  # all are one
    config.backbone.latent_dims = (8, 24)
    config.backbone.conditioning = "above"
    config.backbone.decoder_widths = (384, 384)
    config.backbone.encoder_widths = (768,)
    config.learning.batch_size = 200
    config.learning.num_steps = 6_000
    return config
