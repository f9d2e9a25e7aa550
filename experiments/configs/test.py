"""A few steps of a tiny model: a minute with compiling; its samples are noise."""

from experiments.configs import digits


def get_config():
    """Returns the configuration."""
    config = digits.get_config()
    config.backbone.latent_dims = (4, 2)
    config.backbone.prior_widths = (8,)
    config.backbone.decoder_widths = (16,)
    config.energy.widths = (8,)
    config.chains.prior.num_steps = 4
    config.chains.posterior.num_steps = 4
    config.chains.posterior.start = "normal"
    config.learning.method = "mle"
    config.learning.persistent_chains = 40
    config.learning.persistent_steps = 4
    config.learning.batch_size = 20
    config.learning.num_steps = 8
    config.log.every = 2
    config.log.checkpoint_every = 4
    config.log.sample_every = 4
    config.log.diagnose_every = 4
    config.log.num_samples = 16
    config.eval.num_samples = 40
    config.eval.batch_size = 20
    config.eval.num_diagnosed = 4
    return config
