"""CIFAR-10: the shallow generator and joint training of arXiv 2306.06323.

python -m experiments.main --config=experiments/configs/cifar10.py

For an accelerator. The published FID is 66.32; we have not run this to the end. Each
value is marked as published or ours. `monitor`, `eval` and `log` are ours.
"""

from experiments.configs import default


def get_config():
    """Returns the configuration."""
    config = default.uncorrected(default.get_config())
    config.data.name = config.data.fake_like = "cifar10"

    config.backbone.latent_dims = (128, 100)  # published
    config.backbone.prior_widths = (200,) * 4  # published
    config.backbone.decoder_type = "deconv"  # published
    config.backbone.decoder_widths = (1024, 512, 256)  # published: at 8, 16, 32 pixels
    config.backbone.activation = "leaky_relu"  # published, with slope .2
    # Ours; published is sigma = exp(log sigma) + .01. In z-space a prior chain of step
    # .4 is stable only while sigma > .2: this keeps it above .37.
    config.backbone.log_scale_bound = 1.0

    config.energy.widths = ((200, 200, 200), (100, 100))  # published
    config.energy.activation = "leaky_relu"  # published, with slope .2
    config.likelihood.scale = 0.15  # published: .3, on [-1, 1]

    config.chains.prior.num_steps = 60  # published
    config.chains.prior.step_size = 0.4  # published
    config.chains.posterior.num_steps = 40  # published
    config.chains.posterior.step_size = 0.1  # published
    for chain in config.chains.values():
        chain.space = "z"  # published
        chain.start = "normal"  # published: N(0, I) in both layers

    config.learning.batch_size = 100  # published
    config.learning.num_steps = 101 * 500  # published: 101 epochs
    config.learning.backbone_lr = 1e-4  # published
    config.learning.energy_lr = 2e-5  # published
    config.learning.final_lr_fraction = 1.0  # published: no decay
    config.learning.adam_b1 = 0.9  # published
    config.learning.adam_b2 = 0.999  # published
    config.learning.clip_norm = 1e30  # published: no clipping
    config.learning.ema_decay = 0.0  # published: no averaging
    config.learning.energy_penalty = 0.0  # published: none
    config.learning.gradient_penalty = 0.0  # published: none

    # In z-space a chain from N(0, I) is far from p(z_1 | z_2) by nature: only the gap
    # and NaN count.
    config.monitor.energy_gap_nats = 1e3
    config.monitor.prior_grad_norm = 1e30
    config.monitor.posterior_grad_norm = 1e30
    config.monitor.prior_eps_square = 1e30

    config.log.checkpoint_every = 2500
    config.log.sample_every = 2500
    config.log.diagnose_every = 500
    return config
