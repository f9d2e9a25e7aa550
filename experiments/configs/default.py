"""Every field of a config, explained, with the defaults that all configs start from."""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """Returns the default configuration."""
    config = config_dict.ConfigDict()
    config.seed = 0  # of the initial parameters, the order of the data, and all noise
    config.prior = "ebm"  # "gaussian" trains the same generator without energies
    config.matmul_precision = "default"  # or "high", "highest": slower, on a TPU
    config.remat = False  # gradient checkpointing: recomputes activations in chains

    config.data = config_dict.ConfigDict()
    # See docs/data.md. "fake" makes synthetic images with the classes of the data set
    # fake_like, and with its shape if image_shape is None. "folder" reads the pictures
    # below data_dir, crops and scales them to image_shape, (height, width, channels),
    # and holds out about a tenth of them, chosen by a hash of the file name.
    config.data.name = config.data.fake_like = "digits"
    config.data.image_shape = config_dict.placeholder(tuple)
    config.data.data_dir = config_dict.placeholder(str)  # default: TFDS_DATA_DIR
    config.data.labels = ()  # keep these classes only; empty keeps all
    config.data.binarize = False  # pixels are black or white, drawn by their grey
    # For anomaly detection: a class that is left out of training and used in testing.
    config.data.heldout_class = config_dict.placeholder(int)
    # Augmentation of training images, drawn anew at every step: "flip" mirrors, "crop"
    # cuts a random window out of images of many sizes (otherwise the middle), "affine"
    # applies a small rotation, scaling, shear and shift.
    config.data.augment = ()
    config.data.on_corrupt = "error"  # "skip" leaves out images that cannot be read
    config.data.num_workers = 0  # processes that decode large data sets; 0: threads

    # `jebm.build` takes the sections backbone, energy, likelihood and chains.
    config.backbone = config_dict.ConfigDict()
    config.backbone.name = "vector"
    config.backbone.latent_dims = (16, 8)  # bottom (next to the image) to top
    # A layer's prior reads the "next" layer above, or all layers "above".
    config.backbone.conditioning = "next"
    config.backbone.prior_widths = (200, 200)
    config.backbone.decoder_type = "mlp"  # or "deconv", transposed convolutions
    config.backbone.decoder_widths = (512, 512)  # "deconv": channels, coarse to fine
    config.backbone.encoder_widths = (512, 512)  # of the encoder, if there is one
    config.backbone.activation = "gelu"
    config.backbone.log_scale_bound = 3.0  # upper bound of |log sigma_i|

    config.energy = config_dict.ConfigDict()
    config.energy.name = "layerwise"  # one network per layer; "joint": one for all
    config.energy.widths = (200, 200)  # "layerwise" also takes one tuple per layer
    config.energy.activation = "gelu"

    config.likelihood = config_dict.ConfigDict()
    config.likelihood.name = "gaussian"
    config.likelihood.scale = 0.15  # sigma_x of "gaussian", for x in [0, 1]
    # Other likelihoods have other fields: replace all of config.likelihood in a file.

    config.chains = config_dict.ConfigDict()
    config.chains.prior = config_dict.ConfigDict()
    # "underdamped": Langevin steps that keep their direction, with a Metropolis test,
    # sample the density itself. "mala": so do these, which need about twice as many.
    # "langevin": uncorrected steps; the energies absorb their discretisation bias. See
    # `uncorrected` below.
    config.chains.prior.name = "underdamped"
    config.chains.prior.num_steps = 40
    config.chains.prior.step_size = 0.4
    config.chains.prior.space = "eps"  # the noise behind the latents; "z": the latents
    config.chains.prior.start = "normal"  # draws of N(0, I)
    config.chains.posterior = config_dict.ConfigDict()
    config.chains.posterior.name = "langevin"  # or "mala", "underdamped"
    config.chains.posterior.num_steps = 20
    config.chains.posterior.step_size = 0.1
    config.chains.posterior.space = "eps"
    # "variational" needs "encoder". "mle" with "encoder" also trains the encoder, on
    # the ends of the chains.
    config.chains.posterior.start = "normal"

    config.learning = config_dict.ConfigDict()
    # "mle": the posterior chain draws the posterior samples z+. "variational": an
    # encoder draws them, and the posterior chain, if it has steps, refines the draws.
    # "two_stage": the backbone is trained first or given, the energies learn alone.
    config.learning.method = "mle"
    # "variational": share of the energy's gradient that reaches generator and encoder.
    # 0: both learn as a VAE while the energies tilt its prior. With larger shares the
    # encoder can change faster than the prior chain follows. If the posterior chain has
    # steps, the share matters for the encoder only.
    config.learning.energy_grad_scale = 0.0
    # Number of prior chains that continue from their last positions. Each training step
    # moves a batch of them by persistent_steps; each of these chains restarts with
    # probability reinit_probability. 0: none; every training step runs new chains of
    # chains.prior.num_steps.
    config.learning.persistent_chains = 0
    config.learning.persistent_steps = 40
    config.learning.reinit_probability = 0.1
    # Acceptance rate to which chains with a Metropolis test adapt their steps, which
    # begin at chains.*.step_size. Samples take the adapted steps, unless you set
    # chains.*.step_size after training to another value. 0: constant steps.
    config.learning.target_acceptance = 0.7
    # Weight of E in the density of the posterior chain, and so in what the generator
    # learns. 0: the generator learns as if the prior were Gaussian while the energies
    # tilt it. The weight grows from 0 over the first tilt_warmup_steps.
    config.learning.posterior_tilt = 1.0
    config.learning.tilt_warmup_steps = 0
    # Steps in which the weight of log p(x|z) in the density of the posterior chain
    # grows from 0 to 1.
    config.learning.likelihood_warmup_steps = 0
    # "two_stage": first steps in which the energies learn without chains, to classify
    # posterior samples against Gaussian draws (noise-contrastive estimation).
    config.learning.nce_steps = 0
    config.learning.batch_size = 100  # over all devices
    config.learning.num_steps = 1500
    config.learning.optimizer = "adam"  # of the backbone; or "adamax"
    config.learning.backbone_lr = 1e-3
    config.learning.energy_lr = 3e-4  # the energies always use Adam
    config.learning.energy_weight_decay = 0.0  # as weight_decay, for the energies
    config.learning.warmup_steps = 0  # both learning rates grow from 0
    config.learning.final_lr_fraction = 0.1  # cosine decay over num_steps to this share
    config.learning.adam_b1 = 0.9
    config.learning.adam_b2 = 0.999
    config.learning.adam_eps = 1e-8
    config.learning.weight_decay = 0.0  # of the backbone; added to the gradient
    config.learning.clip_norm = 100.0  # of the gradient, per optimiser. 0: not clipped
    config.learning.ema_decay = 0.999  # averages the parameters that sampling uses
    # Operands of the backbone's products in training: "bfloat16" is faster. Samples and
    # scores of the trained model are float32 either way.
    config.learning.compute_dtype = "float32"
    # "variational": steps in which the KL divergence of q from p_beta grows to its full
    # weight. kl_balance balances it between layers meanwhile (arXiv 2007.03898).
    config.learning.kl_warmup_steps = 0
    config.learning.kl_balance = False
    # Weight of the spectral norms of all kernels, and of the largest scale of each
    # normalisation, in the loss; only for backbones that expose their kernels (NVAE).
    # If spectral_penalty_start is not 0, the weight changes geometrically from it to
    # spectral_penalty during the warm-up of the KL divergence.
    config.learning.spectral_penalty = 0.0
    config.learning.spectral_penalty_start = 0.0
    config.learning.energy_penalty = 0.0  # weight of mean E^2 at z+ and z- in the loss
    # Upper bound of the spectral norm of every kernel of the energies. 0: no bound.
    config.learning.energy_spectral_bound = 0.0
    # Weight of mean |grad_eps E|^2 at z- in the loss: it keeps the energy smooth enough
    # for the chain to follow. Uncorrected chains need a larger weight.
    config.learning.gradient_penalty = 0.001

    # If an average over `log.every` steps exceeds one of these limits, training has
    # diverged: it goes back to the last good checkpoint and halves energy_lr, at most
    # max_rollbacks times.
    config.monitor = config_dict.ConfigDict()
    config.monitor.max_rollbacks = 5
    config.monitor.energy_gap_nats = 50.0  # |mean E at z- minus mean E at z+|
    config.monitor.prior_grad_norm = 1e3  # of the log-density, mean over a chain
    config.monitor.posterior_grad_norm = 1e5
    config.monitor.prior_eps_square = 10.0  # mean eps^2 of z-; 1 under N(0, I)

    config.eval = config_dict.ConfigDict()
    # See docs/evaluation.md. "auto" is "classifier" if there is a classifier of the
    # data set, and otherwise "features".
    config.eval.protocol = "auto"
    # Options that several protocols share.
    config.eval.num_samples = 5000
    config.eval.num_posterior_samples = 5  # per image; its score is their average
    config.eval.batch_size = 500  # chains at a time
    config.eval.num_diagnosed = 256  # chains that measure acceptance and stiffness
    # Replicas of parallel tempering, to compare the prior's chain with. 0: none.
    config.eval.num_temperatures = 0
    # `frechet_exact` samples the density itself by MALA steps of half the size, this
    # many times as many as the prior's chain has. 0: it is skipped.
    config.eval.exact_length = 10
    # "anomaly": the score of docs/anomaly.md; the three weights are w, r and t there.
    config.eval.anomaly = config_dict.ConfigDict()
    config.eval.anomaly.likelihood_weight = 1.0
    config.eval.anomaly.num_augmentations = 0  # affine maps; averages the density
    config.eval.anomaly.num_neighbours = 0  # nearest training images to compare with
    config.eval.anomaly.neighbours_weight = 0.0  # needs neighbours
    config.eval.anomaly.knn_volume_weight = 0.0  # needs neighbours
    # Where the posterior chain starts: "mode" of the encoder, or another start of
    # jebm.kernels.STARTS. None: chains.posterior.start.
    config.eval.anomaly.posterior_start = config_dict.placeholder(str)
    # "likelihood": log p(x), see docs/likelihood.md.
    config.eval.likelihood = config_dict.ConfigDict()
    config.eval.likelihood.estimator = "importance"  # or "annealed", "bridged"
    config.eval.likelihood.num_images = 1000  # the first of the held-out split
    config.eval.likelihood.num_samples = 1000  # per image; "annealed" needs only a few
    config.eval.likelihood.num_temperatures = 1000  # of "annealed" and "bridged"
    config.eval.likelihood.batch_size = 100  # images at a time
    # "ood": sets of outliers, each a data set or made by
    # experiments/evaluation/outliers.py.
    config.eval.ood = config_dict.ConfigDict()
    config.eval.ood.outliers = ("noise", "inverted", "rotated", "constant")
    config.eval.ood.chosen_on = "exchanged"  # selects the score; not in the table
    # Training images that a further score, "surprise", compares with; 0: leave it out.
    config.eval.ood.num_calibration = 0
    # "paper" and "clean": see docs/metrics.md.
    config.eval.fid = config_dict.ConfigDict()
    config.eval.fid.num_samples = 50_000
    config.eval.fid.sets = ("chain", "untilted")  # also "long_chain", "posterior"
    config.eval.fid.temperature = 1.0  # of samples of the prior, as in NVAE
    config.eval.fid.reference = config_dict.placeholder(str)  # default: the data set
    config.eval.fid.reference_split = "train"
    config.eval.fid.inception = config_dict.placeholder(str)  # default: the cache

    config.log = config_dict.ConfigDict()
    config.log.every = 50  # steps between lines of metrics.jsonl
    config.log.checkpoint_every = 500
    config.log.keep = 3  # newest checkpoints that stay on disk
    config.log.sample_every = 500  # steps between pictures in samples/
    config.log.diagnose_every = 100  # steps between acceptance and stiffness of chains
    # Walkers, moved every log.every steps, whose weights estimate log Z of the averaged
    # parameters during training (docs/exact_law.md). 0: none.
    config.log.num_walkers = 512
    config.log.num_samples = 100  # pictures per grid, a square number
    return config


def uncorrected(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Returns `config` with the paper's prior chain: uncorrected Langevin steps.

    The energies then absorb the chain's discretisation bias: the samples are good, but
    they do not follow the density. The penalty keeps the energies smooth enough for the
    chain. (docs/exact_law.md)
    """
    config.chains.prior.name = "langevin"
    config.learning.target_acceptance = 0.0
    config.learning.gradient_penalty = 0.02
    return config


def two_stages(stage_one: str) -> config_dict.ConfigDict:
    """Returns the section `backbone` of a second stage.

    `stage_one` names the config of the first stage. Set `checkpoint` to a trained run
    to use it instead of training the first stage. `changes` overrides settings of the
    first stage, by section: {"backbone": {"width": 8}, "learning": {"num_steps": 400}}.
    """
    backbone = config_dict.ConfigDict()
    backbone.checkpoint = config_dict.placeholder(str)
    backbone.stage_one = stage_one
    backbone.changes = config_dict.ConfigDict()
    return backbone
