"""CIFAR-10 against SVHN: out-of-distribution scores of a convolutional ladder.

python -m experiments.main --config=experiments/configs/cifar10_svhn_ood.py

For an accelerator; we have not run this to the end. All settings are ours: published
are an AUROC of .927 and an AUPRC of .918 for LLR^{>9}, of a deeper backbone whose
settings are not (arXiv 2306.06323); minus score(0) has .087 and .319 there.
"""

from ml_collections import config_dict

from experiments.configs import mnist_ood


def get_config():
    """Returns the configuration."""
    config = mnist_ood.get_config()
    config.data.name = config.data.fake_like = "cifar10"
    config.backbone = config_dict.ConfigDict()
    config.backbone.name = "ladder"
    # Bottom to top; vectors lie above maps.
    config.backbone.latent_shapes = ((16, 16, 8), (8, 8, 16), (4, 4, 16), (64,), (32,))
    config.backbone.width = 128
    config.backbone.encoder_widths = (128, 128, 128, 512, 512)
    config.backbone.activation = "gelu"
    config.backbone.log_scale_bound = 3.0
    config.energy.widths = (512, 512)
    config.likelihood.scale = 0.1
    config.learning.num_steps = 100 * 500  # 100 epochs
    config.learning.backbone_lr = 3e-4
    config.learning.energy_lr = 2e-4
    config.log.checkpoint_every = 2500
    config.log.sample_every = 2500
    config.log.diagnose_every = 500
    config.eval.ood.outliers = ("svhn_cropped", "noise", "constant")
    config.eval.batch_size = 100
    return config
