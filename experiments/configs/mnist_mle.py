"""MNIST by maximum likelihood: posterior chains that start at an encoder.

python -m experiments.main --config=experiments/configs/mnist_mle.py

Generator, hierarchy and energies learn from short MALA chains of the posterior, which
start at draws of the encoder; the encoder is trained on the ends of the chains. The
loss contains no bound on the likelihood.
"""

from experiments.configs import mnist


def get_config():
    """Returns the configuration."""
    config = mnist.get_config()
    config.learning.method = "mle"
    config.learning.num_steps = 8000
    # With all of the energy from the first step on, energies and generator run away
    # from each other. (docs/joint.md)
    config.learning.posterior_tilt = 0.0
    # What an untrained generator calls the posterior is far out, and encoder and chains
    # that have gone there come back very slowly.
    config.learning.likelihood_warmup_steps = 200
    config.chains.posterior.name = "mala"
    # Fewer, and posterior and prior drift apart faster than encoder and chains return.
    config.chains.posterior.num_steps = 15
    # What training comes to.
    config.chains.posterior.step_size = 0.05
    # The Gaussian prior is far off, and a chain from it takes longer to arrive.
    config.chains.prior.num_steps = 800
    # As it was measured. (docs/stability.md)
    config.chains.prior.name = "mala"
    config.learning.persistent_steps = 20
    config.eval.exact_length = 10
    return config
