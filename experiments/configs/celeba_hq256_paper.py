"""CelebA-HQ, 256 x 256, in two stages, with the settings of the paper's code.

python -m experiments.main --config=experiments/configs/celeba_hq256_paper.py
    --config.backbone.checkpoint=RUN

From the code of arXiv 2306.06323: 10 Langevin steps from fresh noise of step 1e-5, the
square of ours, on log p_beta(T(eps)) - E(T(eps)), which leaves the Jacobian of T out;
leaky units, rate 2e-5, Adam with betas (.99, .999), weight decay 3e-5, batch 4, 6,500
steps. No penalty, no clipping, no decay of the rate. Chains this short move eps by .01
in all: what they sample is next to the untilted prior.
"""

from experiments.configs import celeba_hq256


def get_config():
    """Returns the configuration."""
    config = celeba_hq256.get_config()
    config.energy.activation = "leaky_relu"
    config.chains.prior.num_steps = 10
    config.chains.prior.step_size = 1e-5**0.5
    config.chains.prior.space = "eps_no_jacobian"
    config.learning.batch_size = 4
    config.learning.num_steps = 6500
    config.learning.persistent_chains = 0
    config.learning.reinit_probability = 0.0
    config.learning.final_lr_fraction = 1.0
    config.learning.clip_norm = 1e9
    config.learning.gradient_penalty = 0.0
    config.log.checkpoint_every = 500
    config.log.sample_every = 500
    return config
