"""CelebA, 64 x 64: as `cifar10`, with one more upsampling layer in the generator.

python -m experiments.main --config=experiments/configs/celeba64.py

For an accelerator. The published FID (arXiv 2306.06323) is 33.60, of a generator that
is not described: all settings are ours, taken over from `cifar10`. We have not run this
to the end.
"""

from experiments.configs import cifar10


def get_config():
    """Returns the configuration."""
    config = cifar10.get_config()
    config.data.name = config.data.fake_like = "celeb_a"
    config.backbone.decoder_widths = (1024, 512, 256, 128)  # ours: at 8 to 64 pixels
    config.learning.num_steps = 101 * 1627  # ours: 101 epochs
    return config
