"""Fashion-MNIST against digits and other images from elsewhere: maps, in two stages.

python -m experiments.main --config=experiments/configs/fashion_maps_ood.py

The first stage is `fashion_maps`, trained in WORKDIR/backbone; the second tilts its
prior by one energy of all layers. To use a run that is there,
--config.backbone.checkpoint=RUN.
"""

from ml_collections import config_dict

from experiments.configs import default, fashion_maps


def get_config():
    """Returns the configuration."""
    config = fashion_maps.get_config()
    config.prior = "ebm"
    config.backbone = default.two_stages("fashion_maps")
    config.energy = config_dict.ConfigDict()
    config.energy.name = "joint_conv"
    config.energy.channels = 32
    config.energy.widths = (200,)
    config.energy.activation = "silu"
    config.learning.method = "two_stage"
    config.learning.num_steps = 1000
    config.learning.nce_steps = 200
    config.learning.energy_lr = 5e-4
    config.learning.energy_penalty = 1e-3
    config.learning.gradient_penalty = 3e-3
    config.learning.persistent_steps = 5
    config.chains.prior.name = "mala"  # as it was measured
    config.chains.prior.num_steps = 40  # every score(k) with k > 0 takes a chain
    # The energies of telling posterior from prior are steep where no chain has been.
    config.monitor.energy_gap_nats = 500.0
    config.log.checkpoint_every = 250
    config.log.sample_every = 500
    config.eval.protocol = "ood"
    config.eval.exact_length = 10
    config.eval.num_samples = 1000
    config.eval.num_posterior_samples = 2
    config.eval.ood.outliers = ("mnist", "cifar10", "noise", "constant")
    config.eval.ood.num_calibration = 1000
    return config
