"""CelebA-HQ, 256 x 256, in two stages, on NVAE: published FID 30.25 to 9.89.

python -m experiments.main --config=experiments/configs/celeba_hq256.py
    --config.backbone.checkpoint=RUN

RUN is what `tools.convert.nvae` made of the published checkpoint; without it the first
stage, `nvae_celeba_hq256`, is trained in WORKDIR/backbone. The energies are those of
`cifar10_nvae`, batch and chains are ours: `celeba_hq256_paper` has the paper's.

Compiled for a TPU v5e (`tools.speed.tpu_memory`), with `remat`: 11.08 GiB a chip for a
train step of 16 images over eight, 7.65 GiB for 16 samples on one.
"""

from experiments.configs import cifar10_nvae


def get_config():
    """Returns the configuration."""
    config = cifar10_nvae.get_config()
    config.data.name = config.data.fake_like = "celeb_a_hq/256"
    config.backbone.stage_one = "nvae_celeba_hq256"
    config.learning.batch_size = 16
    config.learning.persistent_chains = 256
    config.eval.batch_size = 16
    return config
