"""LSUN church, 64 x 64, in two stages, on NVAE: published FID 38.13 to 8.38.

python -m experiments.main --config=experiments/configs/lsun.py

The first stage, `nvae_lsun`, is trained in WORKDIR/backbone: no checkpoint of it is
published. The energies are those of `cifar10_nvae`; what the paper used on this data
(arXiv 2306.06323, table 3) is not published. docs/nvae.md has this command at a width
that fits a CPU.

Compiled for a TPU v5e: 2.15 GiB a chip for a train step of 64 images over eight, 3.47
GiB for 64 samples on one.
"""

from experiments.configs import cifar10_nvae


def get_config():
    """Returns the configuration."""
    config = cifar10_nvae.get_config()
    config.data.name = config.data.fake_like = "lsun/church_outdoor"
    config.data.augment = ("flip", "crop")
    config.backbone.stage_one = "nvae_lsun"
    return config
