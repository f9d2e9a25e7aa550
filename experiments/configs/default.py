"""Every field of a configuration, with the values that the others start from."""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """Returns the default configuration."""
    config = config_dict.ConfigDict()
    config.seed = 0  # of parameters, order of the data, and all noise
    config.prior = "ebm"  # "gaussian" trains the same generator without energy
    config.matmul_precision = "default"  # or "high", "highest": slower, on a TPU
    config.remat = False  # gradient checkpointing: chains keep no layer's insides

    config.data = config_dict.ConfigDict()
    # See docs/data.md. "fake" makes up images in the shape and classes of fake_like,
    # "folder" brings those below data_dir to image_shape, (height, width, channels);
    # "fake" takes that shape too, where it is given.
    # About a tenth of them are held out, each by its name.
    config.data.name = config.data.fake_like = "digits"
    config.data.image_shape = config_dict.placeholder(tuple)
    config.data.data_dir = config_dict.placeholder(str)  # default: TFDS_DATA_DIR
    config.data.labels = ()  # keep these classes only; empty keeps all
    config.data.binarize = False  # pixels drawn black or white, as their grey tells
    # A class that training does not see and testing does: anomaly detection.
    config.data.heldout_class = config_dict.placeholder(int)
    # Of the images of training, drawn anew at every step: "flip" mirrors, "crop" cuts
    # those of many sizes anywhere, not in the middle, "affine" turns, stretches, slants
    # and moves a little.
    config.data.augment = ()
    config.data.on_corrupt = "error"  # or "skip", at an image that cannot be read
    config.data.num_workers = 0  # processes that decode large data sets; 0: threads

    # backbone, energy, likelihood and chains are what `jebm.build` takes.
    config.backbone = config_dict.ConfigDict()
    config.backbone.name = "vector"
    config.backbone.latent_dims = (16, 8)  # bottom (next to the image) to top
    config.backbone.conditioning = "next"  # or "above": on all layers above
    config.backbone.prior_widths = (200, 200)
    config.backbone.decoder_type = "mlp"  # or "deconv", transposed convolutions
    config.backbone.decoder_widths = (512, 512)  # "deconv": channels, coarse to fine
    config.backbone.encoder_widths = (512, 512)  # built where there is an encoder
    config.backbone.activation = "gelu"
    config.backbone.log_scale_bound = 3.0  # |log sigma_i| stays below it

    config.energy = config_dict.ConfigDict()
    config.energy.name = "layerwise"  # or "joint", one network of all layers
    config.energy.widths = (200, 200)  # layerwise: of each, or one tuple per layer
    config.energy.activation = "gelu"

    config.likelihood = config_dict.ConfigDict()
    config.likelihood.name = "gaussian"
    config.likelihood.scale = 0.15  # sigma_x of "gaussian", for x in [0, 1]
    # Another likelihood has other fields: set config.likelihood as a whole, in a file.

    config.chains = config_dict.ConfigDict()
    config.chains.prior = config_dict.ConfigDict()
    # Tested steps, whose law is the density's own; "langevin": short ones, not tested,
    # whose bias the energies learn with the law. See `uncorrected` below.
    config.chains.prior.name = "mala"
    config.chains.prior.num_steps = 40
    config.chains.prior.step_size = 0.4
    config.chains.prior.space = "eps"
    config.chains.prior.start = "normal"
    config.chains.posterior = config_dict.ConfigDict()
    config.chains.posterior.name = "langevin"  # or "mala"
    config.chains.posterior.num_steps = 20
    config.chains.posterior.step_size = 0.1
    config.chains.posterior.space = "eps"
    # "encoder" for "variational"; with "mle" the encoder then learns to draw what the
    # chain ends at.
    config.chains.posterior.start = "normal"

    config.learning = config_dict.ConfigDict()
    # z+ by the posterior chain, "mle", or by an encoder, "variational"; there the
    # posterior chain, if it has steps, refines the encoder's draws.
    config.learning.method = "mle"
    # "variational": share of the energy's gradients that reaches generator and encoder.
    # 0: these learn as a VAE, and the energies tilt its prior meanwhile. With more, the
    # encoder can climb f faster than the prior chain follows. Where the posterior chain
    # has steps, it concerns the encoder alone.
    config.learning.energy_grad_scale = 0.0
    # Prior chains that go on where they stood, a batch of them at every step by
    # persistent_steps, each starting anew with probability reinit_probability.
    # 0: all of them always start anew and take chains.prior.num_steps.
    config.learning.persistent_chains = 0
    config.learning.persistent_steps = 40
    config.learning.reinit_probability = 0.1
    # Of chains "mala": their steps follow this acceptance rate. 0: they stay.
    config.learning.target_acceptance = 0.7
    # Share of E in the law that the posterior chain follows, and that the generator
    # feels through it. 0: they learn as if the prior were Gaussian, and the energies
    # tilt it meanwhile. It grows from 0 over the first tilt_warmup_steps.
    config.learning.posterior_tilt = 1.0
    config.learning.tilt_warmup_steps = 0
    # Of chains of the posterior: the weight of log p(x|z) in their law grows to 1.
    config.learning.likelihood_warmup_steps = 0
    # First steps of "two_stage" in which the energies tell posterior samples from draws
    # of the Gaussian prior, without chains (noise-contrastive estimation).
    config.learning.nce_steps = 0
    config.learning.batch_size = 100  # over all devices
    config.learning.num_steps = 1500
    config.learning.optimizer = "adam"  # or "adamax", of the backbone
    config.learning.backbone_lr = 1e-3
    config.learning.energy_lr = 3e-4  # Adam
    config.learning.energy_weight_decay = 0.0  # as weight_decay, of the energies
    config.learning.warmup_steps = 0  # from a rate of 0
    config.learning.final_lr_fraction = 0.1  # of a cosine decay over num_steps
    config.learning.adam_b1 = 0.9
    config.learning.adam_b2 = 0.999
    config.learning.adam_eps = 1e-8
    config.learning.weight_decay = (
        0.0  # times the backbone's parameters, to its gradient
    )
    config.learning.clip_norm = 100.0  # of the gradient, per optimiser
    config.learning.ema_decay = 0.999  # of the parameters that sampling uses
    # "variational": the divergence of q from p_beta grows to its full weight in so many
    # steps, and is meanwhile balanced between layers (arXiv 2007.03898).
    config.learning.kl_warmup_steps = 0
    config.learning.kl_balance = False
    # Times the spectral norms of all kernels and the largest scale of each norm, of a
    # backbone that tells its kernels; in the warm-up it moves from its start, if that
    # is not 0, in equal ratios.
    config.learning.spectral_penalty = 0.0
    config.learning.spectral_penalty_start = 0.0
    config.learning.energy_penalty = 0.0  # times mean E^2, z+ and z-
    # Of every kernel of the energies: none leaves a step beyond it. 0: no bound.
    config.learning.energy_spectral_bound = 0.0
    # Times mean |grad_eps E|^2, z-: a chain can only follow a smooth energy, one whose
    # steps are not tested above all.
    config.learning.gradient_penalty = 0.001

    # Beyond these an interval of `log.every` steps has diverged: training goes back to
    # the last good checkpoint with half the energy_lr, at most max_rollbacks times.
    config.monitor = config_dict.ConfigDict()
    config.monitor.max_rollbacks = 5
    config.monitor.energy_gap_nats = 50.0  # |E- minus E+|
    config.monitor.prior_grad_norm = 1e3  # of the log-density, mean over a chain
    config.monitor.posterior_grad_norm = 1e5
    config.monitor.prior_eps_square = 10.0  # mean eps^2 behind z-; N(0, I): 1

    config.eval = config_dict.ConfigDict()
    # An evaluator of experiments.evaluation. "auto": "classifier" where there is one of
    # the data set, else "features".
    config.eval.protocol = "auto"
    # What several evaluators share.
    config.eval.num_samples = 5000
    config.eval.num_posterior_samples = 5  # of each image, that its score averages
    config.eval.batch_size = 500  # chains at a time
    config.eval.num_diagnosed = 256  # chains whose acceptance and stiffness are taken
    # Replicas of the tempered sampler, to hold the prior's chain against; 0: left out.
    config.eval.num_temperatures = 0
    # Steps of the samples of the density's own law, times those of the prior's chain;
    # 0: these are left out.
    config.eval.exact_length = 10
    # "anomaly": the score of experiments/evaluation/anomaly.py, where the weights are
    # w, r and t.
    config.eval.anomaly = config_dict.ConfigDict()
    config.eval.anomaly.likelihood_weight = 1.0
    config.eval.anomaly.num_augmentations = 0  # affine, that the density averages over
    config.eval.anomaly.num_neighbours = 0  # images of training to compare with
    config.eval.anomaly.neighbours_weight = 0.0  # needs neighbours
    config.eval.anomaly.knn_volume_weight = 0.0  # needs neighbours
    # Where the posterior chain starts: "mode" of the encoder, or any other of
    # jebm.kernels.STARTS. None: chains.posterior.start.
    config.eval.anomaly.posterior_start = config_dict.placeholder(str)
    # "likelihood": log p(x), see experiments/evaluation/likelihood.py.
    config.eval.likelihood = config_dict.ConfigDict()
    config.eval.likelihood.estimator = "importance"  # or "annealed", "bridged"
    config.eval.likelihood.num_images = 1000  # the first of the held-out split
    config.eval.likelihood.num_samples = 1000  # of each image; a few where annealed
    config.eval.likelihood.num_temperatures = 1000  # annealed or bridged
    config.eval.likelihood.batch_size = 100  # images at a time
    # "ood": data sets, or what experiments/evaluation/outliers.py makes of them.
    config.eval.ood = config_dict.ConfigDict()
    config.eval.ood.outliers = ("noise", "inverted", "rotated", "constant")
    config.eval.ood.chosen_on = "exchanged"  # chooses the score; not in the table
    # Images of training that the surprise, one more statistic, compares with; 0: none.
    config.eval.ood.num_calibration = 0
    # "paper" and "clean": see experiments/evaluation/fid.py.
    config.eval.fid = config_dict.ConfigDict()
    config.eval.fid.num_samples = 50_000
    config.eval.fid.sets = ("chain", "untilted")  # also "long_chain", "posterior"
    config.eval.fid.temperature = 1.0  # of the prior's samples, NVAE's
    config.eval.fid.reference = config_dict.placeholder(str)  # default: of the data
    config.eval.fid.reference_split = "train"
    config.eval.fid.inception = config_dict.placeholder(str)  # default: the cache

    config.log = config_dict.ConfigDict()
    config.log.every = 50  # steps between lines of metrics.jsonl
    config.log.checkpoint_every = 500
    config.log.keep = 3  # checkpoints
    config.log.sample_every = 500  # steps between pictures in samples/
    config.log.diagnose_every = 100  # steps between acceptance and stiffness of chains
    # Walkers that follow the averaged energies, moved every log.every steps: their
    # weights tell log Z as learning goes. 0: none.
    config.log.num_walkers = 512
    config.log.num_samples = 100  # pictures per grid, a square number
    return config


def uncorrected(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Returns `config` with the prior chain of the paper, whose steps are not tested.

    The energies then absorb the bias of its step: the samples are good, and the density
    is another one. The penalty keeps the chain's drift small. (docs/exact_law.md)
    """
    config.chains.prior.name = "langevin"
    config.learning.target_acceptance = 0.0
    config.learning.gradient_penalty = 0.02
    return config


def two_stages(stage_one: str) -> config_dict.ConfigDict:
    """Returns the `backbone` of a second stage, whose first is the config of this name.

    `checkpoint` is a run to take in place of training the first stage. `changes` are
    the first stage's own settings, section by section, of those that a stage has for
    itself: {"backbone": {"width": 8}, "learning": {"num_steps": 400}}.
    """
    backbone = config_dict.ConfigDict()
    backbone.checkpoint = config_dict.placeholder(str)
    backbone.stage_one = stage_one
    backbone.changes = config_dict.ConfigDict()
    return backbone
