import importlib
import math

import jax
import pytest

import jebm
from experiments import options
from experiments.configs import CONFIGS
from experiments.data import datasets, loaders
from experiments.models import build_model, model_spec
from tests.experiments.runs import metrics, run

SHAPES = {"cifar10": (32, 32, 3), "svhn": (32, 32, 3), "celeba64": (64, 64, 3)}


def config_of(name):
    return importlib.import_module(f"experiments.configs.{name}").get_config()


def shapes_of(name):
    """The model of a config and the shapes of its parameters; nothing is computed."""
    model = build_model(options.read(config_of(name)), SHAPES[name])
    return model, jax.eval_shape(jebm.init, jax.random.key(0), model)


def num_parameters(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def kernels(tree):
    return {name: layer["kernel"].shape for name, layer in sorted(tree.items())}


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_joint_training_has_the_published_latents_priors_and_energies(name):
    model, params = shapes_of(name)
    assert model.backbone.latent_shapes == ((128,), (100,))
    prior = kernels(params.backbone["params"]["priors_0"])
    assert list(prior.values()) == [(100, 200), *[(200, 200)] * 3, (200, 256)]
    energy = params.energy["params"]
    bottom, top = kernels(energy["f1"]), kernels(energy["f2"])
    assert list(bottom.values()) == [(128, 200), (200, 200), (200, 200), (200, 1)]
    assert list(top.values()) == [(100, 100), (100, 100), (100, 1)]
    chain = {"space": "z", "start": "normal"}
    assert model.chains.prior == jebm.Langevin(60, 0.4, **chain)
    assert model.chains.posterior == jebm.Langevin(40, 0.1, **chain)


def test_cifar10_has_the_published_generator():
    _, params = shapes_of("cifar10")
    decoder = params.backbone["params"]["decoder"]
    maps = [
        leaf["kernel"].shape for name, leaf in sorted(decoder.items()) if name != "bias"
    ]
    assert maps == [(4, 4, 512, 1024), (4, 4, 256, 512), (3, 3, 3, 256), (128, 65536)]
    assert num_parameters(decoder) == 18_883_075  # published: 18.88 million
    assert num_parameters(params.backbone["params"]["priors_0"]) == 192_256  # .19
    # Of the last layers' biases, one per energy, published networks have two more.
    assert num_parameters(params.energy["params"]["f1"]) == 106_400  # .106
    assert num_parameters(params.energy["params"]["f2"]) == 20_300  # .020


def test_celeba64_has_one_stage_more_than_cifar10():
    _, params = shapes_of("celeba64")
    decoder = params.backbone["params"]["decoder"]
    assert decoder["ConvTranspose_2"]["kernel"].shape == (4, 4, 128, 256)
    assert decoder["ConvTranspose_3"]["kernel"].shape == (3, 3, 3, 128)


@pytest.mark.parametrize(
    ("name", "images"), [("cifar10", 50_000), ("svhn", 73_257), ("celeba64", 162_770)]
)
def test_training_takes_101_epochs(name, images):
    learning = config_of(name).learning
    assert learning.num_steps == 101 * (images // learning.batch_size)


def shrunken(name):
    """The config with tiny networks, two steps of two chain steps each."""
    config = config_of(name)
    stages = len(config.backbone.decoder_widths)
    config.backbone.latent_dims = (4, 3)
    config.backbone.prior_widths = (4,)
    config.backbone.decoder_widths = (2,) * stages
    config.energy.widths = ((4, 4), (4,))
    config.chains.prior.num_steps = config.chains.posterior.num_steps = 2
    config.learning.batch_size = 2 * jax.local_device_count()
    config.learning.num_steps = 2
    config.log.update(
        every=1, checkpoint_every=2, sample_every=2, diagnose_every=2, num_samples=4
    )
    return config


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SHAPES))
def test_a_shrunken_config_takes_two_steps(name, tmp_path):
    config = shrunken(name)
    config.data.name = "fake"
    run(config, tmp_path / "run")
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2]
    assert all(value is not None for line in lines for value in line.values())
    assert lines[0]["energy_gap_nats"] == 0  # energies start at 0


CONFIGS = sorted(p.stem for p in CONFIGS.glob("*.py"))


@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "__init__"])
def test_every_config_can_be_tried_on_made_up_images(name):
    config = config_of(name)
    if config.data.name != "folder":
        assert config.data.fake_like == config.data.name
    config.data.name = "fake"
    splits = datasets.load(options.read(config).data)
    shape = config.data.image_shape or loaders.SHAPES[config.data.fake_like]
    assert splits["train"].images.shape[1:] == shape
    assert len(splits["train"].images) >= config.learning.batch_size


TWO_STAGES = {
    "cifar10_nvae": (32, 32, 3),
    "lsun": (64, 64, 3),
    "celeba_hq256": (256, 256, 3),
    "celeba_hq256_paper": (256, 256, 3),
}


@pytest.mark.parametrize("name", sorted(TWO_STAGES))
def test_second_stages_have_the_published_energies(name):
    experiment = options.read(config_of(name))
    model = jebm.build(model_spec(experiment, TWO_STAGES[name]))
    shapes = model.backbone.latent_shapes
    z = [jax.ShapeDtypeStruct((1, *shape), float) for shape in shapes]
    energies = jax.eval_shape(model.energy.init, jax.random.key(0), z)["params"]
    for i, shape in enumerate(shapes, start=1):
        halvings = int(math.log2(shape[0] // 4))
        maps = [energies[f"f{i}_conv_{h}"]["kernel"].shape for h in range(halvings)]
        assert maps == [(4, 4, shape[-1], 64), *[(4, 4, 64, 64)] * halvings][:halvings]
        head = list(kernels(energies[f"f{i}"]).values())
        features = 16 * (64 if halvings else shape[-1])
        assert head == [(features, 200), (200, 200), (200, 1)]


def test_regime_of_the_papers_code():
    chain = config_of("celeba_hq256_paper").chains.prior
    assert chain.name == "langevin"
    assert (chain.num_steps, chain.space) == (10, "eps_no_jacobian")
    assert math.isclose(chain.step_size**2, 1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "groups"),
    [
        (
            "nvae_celeba_hq256",
            (256, 256, 3),
            [128] * 16 + [64] * 8 + [32] * 4 + [16] * 4 + [8] * 4,
        ),
        ("nvae_lsun", (64, 64, 3), [32] * 5 + [16] * 5 + [8] * 5),
    ],
)
def test_published_hierarchies(name, shape, groups):
    experiment = options.read(config_of(name))
    shapes = jebm.build(model_spec(experiment, shape)).backbone.latent_shapes
    assert [s[0] for s in shapes] == groups
    assert {s[-1] for s in shapes} == {20}
