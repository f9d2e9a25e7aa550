"""The paper's toy: MNIST's zeros and ones, two layers of 2-D latents.

python -m experiments.main --config=experiments/configs/mnist01.py

`figures/latent_planes.png` reproduces the paper's figure: the energies tilt the
Gaussian prior of each layer to the multi-modal aggregate posterior. p(z_1 | z_2) is
linear, so only the energies can make the modes.
"""

from experiments.configs import mnist_uncorrected


def get_config():
    """Returns the configuration."""
    config = mnist_uncorrected.get_config()
    config.data.labels = (0, 1)
    config.backbone.latent_dims = (2, 2)
    config.backbone.prior_widths = ()
    config.backbone.log_scale_bound = 1.0
    config.backbone.decoder_widths = (256, 256)
    # With 2-D latents each unit moves many pixels: a wider p(x | z) keeps the posterior
    # chain stable.
    config.likelihood.scale = 0.4
    config.chains.prior.num_steps = 60
    config.chains.prior.step_size = 0.4
    config.chains.posterior.start = "normal"
    config.chains.posterior.num_steps = 40
    config.chains.posterior.step_size = 0.07
    config.learning.method = "mle"
    config.learning.persistent_chains = 0
    config.learning.num_steps = 4000
    config.learning.backbone_lr = 3e-4
    config.learning.energy_lr = 5e-4
    config.learning.gradient_penalty = 0.01
    return config
