"""MNIST in two stages: NVAE first, then the energy that tilts its prior.

python -m experiments.main --config=experiments/configs/nvae_mnist_ebm.py

The first stage is `nvae_mnist` on grey images, whose Bernoulli likelihood is then a
cross-entropy. To use a run that is there, --config.backbone.checkpoint=RUN. The second
tells posterior from prior samples first, then learns with the chains. Compiled for a
TPU v5e: .05 GiB a chip for a train step over four, .07 GiB for 500 samples on one.
"""

from ml_collections import config_dict

from experiments.configs import mnist_ladder_ebm


def get_config():
    """Returns the configuration."""
    config = mnist_ladder_ebm.get_config()
    config.chains.prior.step_size = 0.4
    config.learning.reinit_probability = 0.01
    config.learning.final_lr_fraction = 0.02
    config.backbone.stage_one = "nvae_mnist"
    config.energy = config_dict.ConfigDict()
    # One of the latents sees nothing: nearly all of the 1,792 are noise under both.
    config.energy.name = "state"
    config.energy.channels = 64
    config.energy.widths = (256, 256)
    config.energy.activation = "silu"
    config.chains.prior.num_steps = 100
    # Of batches of 100 the chains alone learn next to nothing in as many steps.
    config.learning.nce_steps = 3000
    config.learning.num_steps = 6000
    config.learning.persistent_chains = 1000
    config.learning.persistent_steps = 10
    config.learning.energy_penalty = 1e-3
    config.learning.gradient_penalty = 3e-3
    config.eval.num_samples = 1000
    config.eval.exact_length = 10
    config.eval.batch_size = 100  # a chain through NVAE holds 25 MB an image
    config.log.num_walkers = 0
    config.log.every = 20
    config.log.checkpoint_every = 200
    config.log.sample_every = 800
    config.log.diagnose_every = 400
    return config
