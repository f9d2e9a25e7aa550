"""MNIST with one digit held out of training, to be told by its score.

python -m experiments.main --config=experiments/configs/mnist_anomaly.py

Chosen on other digits than those of the table (docs/anomaly.md): many latents, and a
shallow encoder, which puts what it has not seen apart from what it has.
"""

from experiments.configs import mnist


def get_config():
    """Returns the configuration."""
    config = mnist.get_config()
    config.data.heldout_digit = 1
    config.eval.protocol = "anomaly"
    config.eval.anomaly_likelihood_weight = 0.02
    config.backbone.latent_dims = (8, 24)
    config.backbone.conditioning = "above"
    config.backbone.decoder_widths = (384, 384)
    config.backbone.encoder_widths = (768,)
    config.energy.name = "joint"
    config.energy.widths = (256, 256, 256)
    # Short steps, so that the energy may be steep: its density is what tells.
    config.chains.prior.num_steps = 300
    config.chains.prior.step_size = 0.2
    config.learning.persistent_steps = 15
    config.learning.num_steps = 5000
    config.learning.energy_lr = 6e-3
    return config
