import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import config_dict

import jebm
from experiments import models, options
from experiments.errors import ConfigError
from experiments.models import stage_one
from experiments.rundir.settings import read_settings
from experiments.training import two_stage
from jebm import objectives
from jebm.backbones.vector import Vector
from jebm.chains import draw_noise, encode, to_eps
from jebm.learning import losses
from tests.experiments.runs import (
    build_model,
    contents,
    create_state,
    make_train_step,
    metrics,
    run,
    state_digests,
)
from tests.experiments.training.test_train import variational_config

BOUND = 0.5  # of the energies' kernels


def first_config():
    config = variational_config("gaussian")
    config.learning.num_steps = 4
    return config


def two_stage_config():
    """Of energies alone; its first stage, "first", is not there."""
    config = variational_config("ebm")
    config.backbone = config_dict.ConfigDict({"stage_one": "first"})
    config.backbone.checkpoint = config_dict.placeholder(str)
    config.learning.method = "two_stage"
    return config


@pytest.fixture
def second_config(monkeypatch):
    first = options.read(first_config())
    for module in (models, two_stage):
        monkeypatch.setattr(module, "stage_one", lambda experiment: first)
    config = two_stage_config()
    config.learning.num_steps = 8
    config.learning.energy_spectral_bound = BOUND
    return config


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The directory of a run that trained its backbone itself."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("two") / "run"
        run(second_config.__wrapped__(patch), path)
    return path


@pytest.mark.slow
def test_first_stage_is_trained_and_stays_to_the_bit(both):
    _, first = jebm.load(both / "backbone")
    model, second = jebm.load(both)
    assert model.energy is not None
    jax.tree.map(np.testing.assert_array_equal, first.backbone, second.backbone)
    before = jebm.init(jax.random.key(0), model).energy
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, second.energy)
    assert any(jax.tree.leaves(moved))
    kernels = [k for k in jax.tree.leaves(second.energy) if k.ndim == 2]
    norms = [np.linalg.norm(k, 2) for k in kernels]
    # The averages of what is in the bound are in it.
    assert max(norms) <= BOUND * 1.01 and sum(n > BOUND * 0.9 for n in norms) > 1
    names = set(metrics(both)[-1])
    assert {"energy_gap_nats", "prior_eps_square", "loss_nats"} <= names


@pytest.mark.slow
def test_second_stage_goes_on_from_a_checkpoint_to_the_same_bits(
    both, second_config, tmp_path
):
    second_config.backbone.checkpoint = str(both / "backbone")
    path = tmp_path / "run"
    run(second_config, path)
    whole = state_digests(second_config, path, 8)
    assert whole == state_digests(second_config, both, 8)  # nor does it matter where
    shutil.rmtree(path / "checkpoints" / "8")
    run(second_config, path)
    assert state_digests(second_config, path, 8) == whole


@pytest.mark.slow
def test_backbone_may_move_but_not_change(both, second_config, tmp_path):
    path, here, there = (tmp_path / name for name in ("run", "here", "there"))
    shutil.copytree(both, path)
    shutil.copytree(both / "backbone", here)
    second_config.backbone.checkpoint = str(here)
    second_config.learning.num_steps = 12
    run(second_config, path)
    here.rename(there)
    second_config.backbone.checkpoint = str(there)
    second_config.learning.num_steps = 16
    run(second_config, path)
    assert read_settings(path)["backbone"]["checkpoint"] == str(there)
    model, params = jebm.load(there)
    changed = jax.tree.map(lambda leaf: leaf + 1, params)
    shutil.rmtree(there / "checkpoints")
    jebm.save(there, model, changed, 8)
    before = contents(path)
    with pytest.raises(ConfigError, match="began with another backbone"):
        run(second_config, path)
    assert contents(path) == before


def test_the_image_decoder_is_no_part_of_a_step(both, second_config, monkeypatch):
    second_config.backbone.checkpoint = str(both / "backbone")
    model = build_model(second_config)
    backbone = jebm.load(both / "backbone")[1].backbone
    state = create_state(second_config, model, backbone)
    step = make_train_step(second_config, model)
    mapped = jax.vmap(step, axis_name="devices", in_axes=(None, None, 0))

    def decode(self, state):
        raise AssertionError("decoded")

    monkeypatch.setattr(Vector, "decode", decode)
    images = np.zeros((1, 20, 8, 8, 1), np.uint8)
    jax.eval_shape(mapped, jax.random.key(0), state, images)
    with pytest.raises(AssertionError, match="decoded"):
        jebm.model._init(jax.random.key(1), model, jnp.float32)


@pytest.mark.slow
def test_gradient_of_a_step_is_the_contrast_of_energies(both):
    model, params = jebm.load(both)
    keys = jax.random.split(jax.random.key(0), 6)
    x = jax.random.uniform(jax.random.key(1), (6, 8, 8, 1))
    positive = encode(model, params, x, draw_noise(keys, model, params))[0]
    negative = jebm.sample(jax.random.key(2), model, params, 6).latents
    samples = negative, to_eps(model, params, negative)
    batch = losses.Batch(x, keys, positive, *samples, jnp.int32(0), {})
    options = jebm.learning.Options(gradient_penalty=0.0)

    def loss(params):
        return losses.second_stage_loss(model, options, 0, params, batch)[0]

    def contrast(params):
        energies = [jebm.energy(model, params, z).mean() for z in (positive, negative)]
        return energies[0] - energies[1]

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        jax.grad(loss)(params).energy,
        jax.grad(contrast)(params).energy,
    )


@pytest.mark.slow
def test_first_steps_tell_posterior_from_prior_samples_without_chains(
    both, second_config, tmp_path
):
    second_config.backbone.checkpoint = str(both / "backbone")
    second_config.learning.nce_steps = 5
    second_config.log.every = 1
    run(second_config, tmp_path / "run")
    lines = metrics(tmp_path / "run")
    moved = [line["prior_grad_norm"] > 0 for line in lines if "loss_nats" in line]
    assert moved == [False] * 5 + [True] * 3
    assert lines[0]["loss_nats"] == pytest.approx(2 * np.log(2), abs=1e-4)  # E = 0


def test_noise_contrastive_loss_is_least_at_the_log_ratio_of_densities(x64):
    """By quadrature, with an energy that is free at every node."""
    z = np.linspace(-8, 8, 401)
    q, p = (np.exp(-0.5 * ((z - m) / s) ** 2) / s for m, s in ((1, 0.5), (0, 1)))
    q, p = q / q.sum(), p / p.sum()

    def loss(energy):
        each = objectives.noise_contrastive_loss
        return (q * each(energy, 0.0) + p * each(0.0, energy)).sum()

    exact = np.log(p) - np.log(q)
    grad = jax.grad(loss)(exact)
    np.testing.assert_allclose(grad, 0, atol=1e-12)
    assert np.abs(jax.grad(loss)(exact + 0.1)).max() > 1e-4


def test_noise_contrastive_steps_are_of_two_stages():
    config = variational_config("ebm")
    config.learning.nce_steps = 3
    with pytest.raises(ConfigError, match=r"nce_steps needs .* 'two_stage', got 3"):
        options.read(config)


def test_first_stage_has_the_data_and_the_seed_of_the_second():
    from experiments.configs import mnist_ladder_ebm

    config = mnist_ladder_ebm.get_config()
    config.seed = 7
    config.data.labels = (3,)
    first = stage_one(options.read(config))
    assert (first.seed, first.data.labels, first.prior) == (7, (3,), "gaussian")
    assert first.backbone["name"] == "ladder"


def changed_first(changes):
    """The first stage of `mnist_ladder_ebm` with these changes."""
    from experiments.configs import mnist_ladder_ebm

    config = mnist_ladder_ebm.get_config()
    config.backbone.changes = config_dict.ConfigDict(changes)
    return stage_one(options.read(config))


def test_first_stage_has_what_the_second_says_it_has_otherwise():
    plain, widths = changed_first({}), (5, 4, 3)
    changed = changed_first(
        {"backbone": {"encoder_widths": widths}, "learning": {"num_steps": 7}}
    )
    assert changed.backbone == plain.backbone | {"encoder_widths": list(widths)}
    assert changed.learning == dataclasses.replace(plain.learning, num_steps=7)
    assert (changed.log, changed.data) == (plain.log, plain.data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"learning": {"num_step": 3}},
            "backbone.changes: mnist_ladder has no field 'learning.num_step'; did you "
            "mean 'learning.num_steps'?",
        ),
        ({"learning": {"num_steps": 0}}, "learning.num_steps must be at least 1"),
    ],
)
def test_changes_that_a_first_stage_cannot_have_are_told(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        changed_first(changes)


def weights_of(experiment):
    """How the score of anomalies weighs likelihood, neighbours and volume."""
    anomaly = experiment.eval.evaluators["anomaly"]
    names = ("likelihood_weight", "neighbours_weight", "knn_volume_weight")
    return tuple(anomaly[name] for name in names)


def test_first_stage_is_evaluated_as_the_second_but_for_the_weights_of_its_score():
    from experiments.configs import mnist_anomaly

    config = mnist_anomaly.get_config()
    config.eval.batch_size, config.eval.anomaly.num_augmentations = 7, 3
    second = options.read(config)
    first = stage_one(second)
    assert (first.eval.batch_size, first.eval.protocol) == (7, "anomaly")
    assert first.eval.evaluators["anomaly"]["num_augmentations"] == 3
    assert [weights_of(stage) for stage in (first, second)] == [
        (0.0, 0.7, 2.0),
        (0.0, 0.5, 0.5),
    ]
    config.eval.anomaly.num_neighbours = 0
    assert weights_of(stage_one(options.read(config))) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(prior="gaussian"), "prior must be 'ebm', got 'gaussian'"),
        (
            lambda c: c.backbone.update(checkpoint="/no/such/run"),
            "which has no model.json",
        ),
        (
            lambda c: c.chains.posterior.update(start="normal", num_steps=2),
            "'two_stage' needs chains.posterior.start 'encoder'",
        ),
        (
            lambda c: setattr(
                c, "backbone", config_dict.ConfigDict({"name": "vector"})
            ),
            r"\['checkpoint', 'stage_one'\] are missing",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(
    second_config, tmp_path, change, message
):
    with second_config.unlocked():
        change(second_config)
    with pytest.raises(ConfigError, match=message):
        run(second_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_another_first_stage_in_the_way_is_refused(both, second_config, tmp_path):
    """WORKDIR/backbone holds a run of other settings."""
    shutil.copytree(both / "backbone", tmp_path / "backbone")
    model = build_model(second_config)
    other = dataclasses.replace(model, backbone=Vector((8, 8, 1), encoder_widths=(3,)))
    experiment = options.read(second_config)
    with pytest.raises(ConfigError, match="holds another backbone than"):
        two_stage.load_backbone(experiment, tmp_path, other, lambda *_: None)


def test_backbone_that_has_seen_what_is_held_out_is_refused(both, second_config):
    second_config.backbone.checkpoint = str(both / "backbone")
    model = build_model(second_config)
    second_config.data.heldout_class = 4
    experiment = options.read(second_config)
    with pytest.raises(
        ConfigError, match=r"with data\.heldout_class None, and .* is 4"
    ):
        two_stage.load_backbone(experiment, both, model, lambda *_: None)


def test_unknown_first_stage_is_named():
    from experiments.configs import mnist_ladder_ebm

    config = mnist_ladder_ebm.get_config()
    config.backbone.stage_one = "nothing"
    with pytest.raises(ConfigError, match=r"stage_one must name .* got 'nothing'"):
        stage_one(options.read(config))


def test_backbone_of_other_data_is_refused(both, second_config, tmp_path):
    second_config.backbone.checkpoint = str(both / "backbone")
    spec = json.loads((both / "backbone" / "model.json").read_text())
    model = build_model(second_config, (16, 16, 1))
    assert spec["image_shape"] == [8, 8, 1]
    experiment = options.read(second_config)
    with pytest.raises(ConfigError, match=r"makes images \(8, 8, 1\), .* has \(16, "):
        two_stage.load_backbone(experiment, tmp_path, model, None)
