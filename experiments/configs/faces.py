"""Faces, or any folder of aligned photographs, in two stages, for two cores.

python -m experiments.main --config=experiments/configs/faces.py
    --config.data.data_dir=PICTURES

The first stage is `faces_ladder`, trained in WORKDIR/backbone; the second tilts its
prior by one energy of the state that the decoder reads. To use a run that is there,
--config.backbone.checkpoint=RUN.
"""

from ml_collections import config_dict

from experiments.configs import default, faces_ladder


def get_config():
    """Returns the configuration."""
    config = faces_ladder.get_config()
    config.prior = "ebm"
    config.backbone = default.two_stages("faces_ladder")
    config.energy = config_dict.ConfigDict()
    config.energy.name = "state"
    config.energy.channels = 48
    config.energy.widths = (256,)
    config.energy.activation = "silu"
    config.learning.method = "two_stage"
    config.learning.kl_warmup_steps = 0
    config.learning.kl_balance = False
    config.learning.num_steps = 1000
    config.learning.nce_steps = 150
    config.learning.energy_lr = 3e-4
    config.learning.energy_penalty = 1e-3
    config.learning.gradient_penalty = 3e-3
    config.learning.final_lr_fraction = 0.05
    config.learning.persistent_chains = 640
    config.learning.persistent_steps = 5
    config.learning.reinit_probability = 0.01
    config.chains.prior.num_steps = 100
    config.chains.prior.step_size = 0.3
    # The energies of telling posterior from prior are steep where no chain has been.
    config.monitor.energy_gap_nats = 500.0
    config.eval.num_samples = 1000
    config.eval.batch_size = 100
    config.log.every = 25
    config.log.checkpoint_every = 100
    config.log.sample_every = 250
    config.log.diagnose_every = 250
    return config
