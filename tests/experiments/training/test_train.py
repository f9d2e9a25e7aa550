import dataclasses
import shutil
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jebm
from experiments import main, options
from experiments.data import datasets
from experiments.data.pixels import to_unit
from experiments.drawing import samples
from experiments.errors import ConfigError
from experiments.runtime import parallel
from experiments.training import learner, screen
from experiments.training.hooks import Hooks
from experiments.training.state import restore
from jebm import chains, checkpoints, spec
from jebm.backbones.vector import Vector
from jebm.chains import draw_noise, example_keys, to_eps
from jebm.hierarchy import infer
from jebm.learning import losses
from jebm.learning.state import Role
from tests.experiments.runs import (
    build_model,
    contents,
    create_state,
    make_train_step,
    metrics,
    run,
    state_digests,
)
from tests.models import random_params


@pytest.fixture(scope="module")
def again(tmp_path_factory):
    """A second run of the tiny configuration, with a record of its calls."""
    path = tmp_path_factory.mktemp("again") / "run"
    calls = {
        name: mock.Mock(side_effect=getattr(module, name))
        for module, name in (
            (losses, "maximum_likelihood_loss"),
            (chains, "run_chains"),
        )
    }
    calls["pictures"] = mock.Mock(side_effect=main.HOOKS.pictures)
    calls["end"] = mock.Mock()
    hooks = Hooks(calls.pop("pictures"), calls.pop("end"))
    run(config_with(), path, hooks, **calls)
    return path, calls | hooks._asdict()


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory):
    """A run of the Gaussian twin, with a record of its chains."""
    path = tmp_path_factory.mktemp("gaussian") / "run"
    run_chains = mock.Mock(side_effect=chains.run_chains)
    hooks = Hooks(pictures=main.HOOKS.pictures)
    run(config_with(prior="gaussian"), path, hooks, run_chains=run_chains)
    return path, run_chains


def config_with(**fields):
    from experiments.configs import test

    config = test.get_config()
    config.update(fields)
    return config


@pytest.mark.slow
def test_same_seed_gives_the_same_bits(again, trained_run, test_config):
    path, _ = again
    for step in (4, 8):
        digests = state_digests(test_config, path, step)
        assert len(digests) > 40
        assert digests == state_digests(test_config, trained_run, step)
    assert metrics(path) == metrics(trained_run)
    assert contents(path / "samples") == contents(trained_run / "samples")


@pytest.mark.slow
def test_another_seed_gives_other_bits(trained_run, test_config, tmp_path):
    run(config_with(seed=1), tmp_path / "run")
    ours, theirs = (
        state_digests(test_config, path, 8) for path in (tmp_path / "run", trained_run)
    )
    kernels = [name for name in ours if "kernel" in name]
    assert kernels
    assert all(ours[name] != theirs[name] for name in kernels)


def test_step_is_traced_once_in_a_run(again):
    _, calls = again
    assert calls["maximum_likelihood_loss"].call_count == 1


def test_step_runs_one_posterior_chain_and_one_prior_chain(again):
    _, calls = again
    traces = calls["maximum_likelihood_loss"].call_count
    given = [
        call.kwargs.get("x") is not None for call in calls["run_chains"].mock_calls
    ]
    assert given == [True, False] * traces
    # The step of the prior's chain is traced: it follows the acceptance.
    used = [
        dataclasses.replace(call.args[3], step_size=1.0)
        for call in calls["run_chains"].mock_calls
    ]
    own = build_model(config_with()).chains
    steps = [dataclasses.replace(c, step_size=1.0) for c in (own.posterior, own.prior)]
    assert used == steps * traces


def test_samples_are_drawn_with_the_averaged_parameters(again):
    path, calls = again
    drawn = [call.args[0] for call in calls["pictures"].mock_calls]
    assert [opened.step for opened in drawn] == [4, 8]
    for opened in drawn:
        assert opened.path == path
        assert opened.experiment == options.read(config_with())
        model, params = jebm.load(path, step=opened.step)
        assert checkpoints.digests(opened.params) == checkpoints.digests(params)
        # model.json has the learned steps of the newest checkpoint alone.
        assert (opened.model == model) == (opened.step == 8)
        assert dataclasses.replace(opened.model, chains=model.chains) == model
        assert opened.splits["test"].images.shape[1:] == (8, 8, 1)


def test_end_of_a_run_is_told_once(again):
    path, calls = again
    calls["end"].assert_called_once_with(options.read(config_with()), path)


@pytest.mark.slow
def test_gaussian_twin_runs_no_prior_chain(gaussian):
    _, run_chains = gaussian
    assert run_chains.call_count >= 1
    assert all(call.kwargs["x"] is not None for call in run_chains.mock_calls)


@pytest.mark.slow
def test_gaussian_twin_has_no_energy(gaussian):
    model, params = jebm.load(gaussian[0])
    assert model.energy is None
    assert params.energy == {}
    assert "decoder" in params.backbone["params"]


def test_gaussian_twin_learns_without_terms_of_a_negative_phase(gaussian):
    lines = metrics(gaussian[0])
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    for line in lines:
        expected = {
            "step",
            "grad_norm",
            "log_likelihood_nats",
            "log_prior_positive_nats",
            "loss_nats",
            "posterior_grad_norm",
        }
        if line["step"] in (4, 8):
            expected |= {"posterior_acceptance", "posterior_stiffness"}
        assert set(line) == expected
        loss = -line["log_likelihood_nats"] - line["log_prior_positive_nats"]
        assert line["loss_nats"] == pytest.approx(loss, rel=1e-6)


def test_gaussian_twin_has_pictures_of_its_own_prior_only(gaussian):
    names = {
        file.stem.rsplit("_", 1)[0] for file in (gaussian[0] / "samples").iterdir()
    }
    assert names == {"gaussian", "reconstruction"}


def test_gaussian_twin_starts_at_the_generator_of_the_joint_model():
    joint, twin = (
        create_state(config, build_model(config)).learner.params
        for config in (config_with(), config_with(prior="gaussian"))
    )
    assert checkpoints.digests(joint.backbone) == checkpoints.digests(twin.backbone)


def variational_config(prior):
    config = config_with(prior=prior)
    config.learning.method = "variational"
    config.backbone.encoder_widths = (16,)
    config.chains.posterior.update(start="encoder", num_steps=0)
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prior", "refinement"), [("ebm", 0), ("gaussian", 0), ("ebm", 2)]
)
def test_variational_learning_lowers_its_loss_and_moves_every_parameter(
    prior, refinement, tmp_path
):
    path, config = tmp_path / "run", variational_config(prior)
    config.chains.posterior.num_steps = refinement
    config.learning.num_steps = 200
    config.log.update(every=50, checkpoint_every=50, sample_every=200)
    config.log.diagnose_every = 200
    run_chains = mock.Mock(side_effect=chains.run_chains)
    run(config, path, Hooks(pictures=main.HOOKS.pictures), run_chains=run_chains)
    chained = {call.kwargs.get("x") is not None for call in run_chains.mock_calls}
    assert chained == ({True} if refinement else set()) | (
        {False} if prior == "ebm" else set()
    )
    lines = metrics(path)
    assert [line["step"] for line in lines] == [50, 100, 150, 200]
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    losses = [line["loss_nats"] for line in lines]
    assert losses[-1] < losses[0] - 20
    model, end = jebm.load(path)
    assert model.backbone.has_encoder
    assert (model.energy is None) == (prior == "gaussian")
    assert model.chains.posterior == jebm.Langevin(refinement, 0.1, start="encoder")
    start = create_state(config, build_model(config)).learner.params
    before, after = checkpoints.digests(start), checkpoints.digests(end)
    assert [name for name in before if "encoder" in name]
    assert [name for name in before if before[name] == after[name]] == []
    names = {file.stem.rsplit("_", 1)[0] for file in (path / "samples").iterdir()}
    assert names == {"gaussian", "reconstruction", prior}


@pytest.mark.slow
@pytest.mark.parametrize(("share", "same"), [(0.0, True), (0.5, False)])
def test_generator_learns_as_that_of_the_twin_where_no_share_of_the_energy_reaches_it(
    share, same
):
    joint = build_model(variational_config("ebm"))
    params = random_params(joint)
    x = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
    keys = jax.random.split(jax.random.key(1), 4)
    latents = jebm.sample(jax.random.key(2), joint, params, 4).latents
    negative = latents, to_eps(joint, params, latents)

    def grads(prior, params, negative):
        config = variational_config(prior)
        model = build_model(config)

        batch = losses.Batch(
            x, keys, None, *(negative or (None, None)), jnp.int32(0), {}
        )

        def loss(params):
            arguments = jebm.learning.Options(), jebm.learning.WarmUp(), share
            return losses.variational_loss(model, *arguments, params, batch)[0]

        return jax.flatten_util.ravel_pytree(jax.grad(loss)(params).backbone)[0]

    tilted = grads("ebm", params, negative)
    untilted = grads("gaussian", params._replace(energy={}), None)
    error = np.abs(tilted - untilted).max() / np.abs(untilted).max()
    assert (error < 1e-6) == same


@pytest.mark.parametrize(
    ("method", "start", "num_steps", "widths", "words"),
    [
        (
            "mle",
            "mode",
            5,
            (16,),
            "'mle' needs a .* of 'normal', 'prior' or 'encoder', got 'mode'",
        ),
        ("mle", "normal", 0, (16,), "'mle' needs steps .*num_steps=0"),
        ("variational", "normal", 0, (16,), "needs .*start 'encoder', got 'normal'"),
        ("variational", "encoder", 0, (), r"encoder_widths must .* got \(\)"),
    ],
)
def test_chain_and_method_that_do_not_go_together_are_refused(
    tmp_path, method, start, num_steps, widths, words
):
    config = variational_config("ebm")
    config.learning.method = method
    config.chains.posterior.update(start=start, num_steps=num_steps)
    config.backbone.encoder_widths = widths
    with pytest.raises(ConfigError, match=words):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def steps_of(config, num=3):
    """Steps on one device: the states, and where each step's prior chains started."""
    model = build_model(config)
    images = datasets.load(options.read(config).data)["train"].images
    images = images[: config.learning.batch_size]
    starts = []

    def recording(*args, start=None, **kwargs):
        if start is not None:
            jax.debug.callback(
                lambda z: starts.append(jax.tree.map(np.array, z)), start
            )
        return run_chains(*args, start=start, **kwargs)

    run_chains = chains.run_chains
    devices = jax.local_devices()[:1]
    states = [learner.distribute(create_state(config, model), devices)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chains, "run_chains", recording)
        step = parallel.pmap(make_train_step(config, model), devices, donate=False)
        for _ in range(num):
            key = jax.random.key(config.seed)
            states.append(step(key, states[-1], parallel.split(images, 1))[0])
        jax.effects_barrier()
    return [learner.collect(state) for state in states], starts


def slots(state, batch_size=20):
    """The persistent chains of each example, per layer [B, slots, *shape_i]."""
    stood = state.learner.persistent
    return [p.reshape(batch_size, -1, *p.shape[1:]) for p in stood]


def test_persistent_chains_go_on_where_their_slot_stood():
    config = config_with()
    config.learning.reinit_probability = 0.0
    (first, *states), starts = steps_of(config)
    first, second = slots(first), slots(states[0])
    assert [p.shape for p in first] == [(20, 2, 4), (20, 2, 2)]
    for t, stood in enumerate([first, first, second]):
        for start, positions in zip(starts[t], stood, strict=True):
            np.testing.assert_array_equal(start, positions[:, t % 2])
    for before, after in zip(first, second, strict=True):
        assert (before[:, 0] != after[:, 0]).all()
        np.testing.assert_array_equal(before[:, 1], after[:, 1])


@pytest.mark.slow
def test_chains_that_always_restart_are_fresh_chains():
    config = config_with()
    config.learning.reinit_probability = 1.0
    (*_, restarted), _ = steps_of(config)
    config.learning.persistent_chains = 0
    (*_, fresh), starts = steps_of(config)
    assert starts == []
    assert fresh.learner.persistent == ()
    # Two programs, and a test of each step: they differ by rounding.
    for one, two in zip(
        *(jax.tree.leaves(s.learner.params) for s in (restarted, fresh)), strict=True
    ):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_about_the_stated_fraction_restarts():
    config = config_with()
    config.learning.update(reinit_probability=0.3, batch_size=1000)
    config.learning.persistent_chains = 1000
    (first, second, _), starts = steps_of(config, num=2)
    del first
    went_on = (starts[1][0] == slots(second, 1000)[0][:, 0]).all(axis=1)
    assert abs(went_on.mean() - 0.7) < 4 * np.sqrt(0.3 * 0.7 / 1000)


@pytest.mark.slow
def test_learning_lowers_the_loss_and_moves_every_parameter(tmp_path):
    config = config_with()
    config.learning.num_steps = 200
    config.log.update(every=50, checkpoint_every=50, sample_every=50, diagnose_every=50)
    run(config, tmp_path / "run")
    losses = [line["loss_nats"] for line in metrics(tmp_path / "run")]
    assert losses[-1] < losses[0] - 20
    start = create_state(config, build_model(config)).learner.params
    end = jebm.load(tmp_path / "run")[1]
    before, after = checkpoints.digests(start), checkpoints.digests(end)
    assert [name for name in before if before[name] == after[name]] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "chain"), [("mala", jebm.MALA), ("underdamped", jebm.Underdamped)]
)
def test_step_of_an_adjusted_chain_is_in_the_metrics_and_in_the_checkpoint(
    tmp_path, name, chain
):
    config, path = config_with(), tmp_path / "run"
    config.chains.prior.name = name
    config.learning.target_acceptance = 0.7
    run(config, path)
    lines = metrics(path)
    assert all(0 < line["prior_acceptance_rate"] <= 1 for line in lines)
    steps = [line["prior_step_size"] for line in lines]
    assert len(set(steps)) == len(steps)
    state = restore(path, create_state(config, build_model(config, (8, 8, 1))))
    assert float(state.learner.step_sizes["prior"]) == pytest.approx(steps[-1], rel=0.1)
    learned = float(f"{float(state.learner.step_sizes['prior']):.2g}")
    assert jebm.load(path)[0].chains.prior == chain(4, learned)


def test_step_that_follows_no_test_is_refused(tmp_path):
    config = config_with()
    config.chains.prior.name = "langevin"
    with pytest.raises(ConfigError, match="target_acceptance needs a prior chain"):
        run(config, tmp_path / "run")


def test_stiff_chain_is_warned_of_once():
    progress, warned = mock.Mock(), set()
    chains = {"prior": jebm.Langevin(), "posterior": jebm.Langevin()}
    for step, prior, posterior in ((2, 0.5, 0.6), (4, 0.7, 0.8), (6, 0.9, 0.4)):
        stiffness = {"prior_stiffness": prior, "posterior_stiffness": posterior}
        screen.warn_of_stiffness(progress, step, stiffness, chains, warned)
    screen.warn_of_stiffness(progress, 8, {"loss_nats": 1.0}, chains, warned)
    first, second = (call.args[0] for call in progress.write.mock_calls)
    assert "at step 2 the posterior chain has a stiffness of 0.60" in first
    assert "chains.posterior.step_size" in first
    assert "at step 4 the prior chain has a stiffness of 0.70" in second
    assert "chains.prior.step_size" in second


def test_chain_whose_steps_are_tested_cannot_be_too_stiff():
    progress, stiffness = mock.Mock(), {"prior_stiffness": 0.9}
    screen.warn_of_stiffness(progress, 2, stiffness, {"prior": jebm.MALA()}, set())
    assert not progress.write.called


def test_run_without_its_samples_and_figures_is_still_a_run(trained_run, tmp_path):
    path = shutil.copytree(trained_run, tmp_path / "run")
    shutil.rmtree(path / "samples")
    shutil.rmtree(path / "figures")
    samples.sample(options.read(config_with()), path)
    assert {file.name for file in (path / "samples").iterdir()} == {
        "ebm_0000008.png",
        "gaussian_0000008.png",
        "reconstruction_0000008.png",
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("ema_decay", 2.0),
        ("clip_norm", -1.0),
        ("backbone_lr", -1e-3),
        ("adam_b1", 1.5),
        ("gradient_penalty", -0.1),
    ],
)
def test_learning_out_of_range_is_refused_before_any_work(
    tmp_path, test_config, field, value
):
    test_config.learning[field] = value
    words = rf"^learning\.{field} must be (at least 0|in \[0, 1\]), got {value}$"
    with pytest.raises(ConfigError, match=words):
        run(test_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_that_jax_cannot_tell_apart_is_refused(tmp_path, test_config, seed):
    test_config.seed = seed
    words = rf"^seed must be in \[0, {2**32 - 1}\], got {seed}$"
    with pytest.raises(ConfigError, match=words):
        run(test_config, tmp_path / "run")


class NormalisedBackbone(Vector):
    """Normalises what it decodes, and tells a kernel."""

    def setup(self):
        super().setup()
        self.norm = nn.BatchNorm()

    def decode(self, state):
        training = self.is_mutable_collection("batch_stats")
        if not self.is_initializing():
            self.sow("kernels", "kernel", 2 * jnp.eye(3))
        return super().decode(self.norm(state, use_running_average=not training))


@pytest.mark.slow
def test_batch_statistics_are_those_of_the_batches_and_their_average_on_devices(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(spec.BACKBONES, "vector", NormalisedBackbone)
    config = variational_config("gaussian")
    built = build_model(config)
    state = create_state(config, built)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 8, 1)).astype(np.uint8)
    devices = jax.local_devices()[:2]
    step = parallel.pmap(make_train_step(config, built), devices)
    key = jax.random.key(config.seed)
    after, _ = step(key, learner.distribute(state, devices), images)
    after = learner.collect(after)

    def latents(device):  # what the norm has seen there
        index = np.arange(8) + 8 * device
        role = jax.random.fold_in(jax.random.fold_in(key, Role.POSTERIOR), 0)
        x = to_unit(images[device])
        keys = example_keys(role, index)
        noise = draw_noise(keys, built, state.learner.params)
        run = nn.apply(lambda b: infer(b, x, noise)[0], built.backbone)
        return np.asarray(run(state.learner.params.backbone)[0])

    seen = [latents(device) for device in range(2)]
    norm = after.learner.params.backbone["batch_stats"]["norm"]
    mean = 0.01 * np.mean([z.mean(0) for z in seen], axis=0)
    var = 0.99 + 0.01 * np.mean([z.var(0) for z in seen], axis=0)
    np.testing.assert_allclose(norm["mean"], mean, atol=1e-6)
    np.testing.assert_allclose(norm["var"], var, atol=1e-6)
    jax.tree.map(
        np.testing.assert_array_equal,
        after.learner.ema.backbone["batch_stats"],
        after.learner.params.backbone["batch_stats"],
    )
    scale = after.learner.ema.backbone["params"]["norm"]["scale"]
    assert (scale != after.learner.params.backbone["params"]["norm"]["scale"]).any()


@pytest.mark.slow
def test_run_with_batch_statistics_resumes_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setitem(spec.BACKBONES, "vector", NormalisedBackbone)
    config = variational_config("gaussian")
    config.learning.kl_warmup_steps = 6
    config.learning.kl_balance = True
    config.learning.spectral_penalty = 0.1
    config.learning.spectral_penalty_start = 1.0
    config.learning.optimizer = "adamax"
    config.learning.weight_decay = 1e-3
    config.learning.warmup_steps = 2
    path = tmp_path / "run"
    run(config, path)
    last = checkpoints.steps(path)[-1]
    whole = state_digests(config, path, last)
    shutil.rmtree(path / "checkpoints" / str(last))
    run(config, path)
    assert state_digests(config, path, last) == whole
    values = metrics(path)
    # |2 I| and the norm's scales, about 1.
    assert all(2.9 < line["spectral_norms"] < 3.2 for line in values)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kl_balance": True}, "kl_balance needs a warm-up"),
        (
            {"spectral_penalty_start": 1.0},
            "spectral_penalty_start needs a warm-up",
        ),
        ({"spectral_penalty": 1.0}, "needs a backbone that sows its kernels"),
        ({"optimizer": "sgd"}, r"unknown learning.optimizer 'sgd'; known: \['adam', "),
        (
            {"warmup_steps": 99},
            "warmup_steps must be less than the num_steps of 8, got 99",
        ),
    ],
)
def test_settings_of_the_generator_that_cannot_work_are_refused(
    tmp_path, changes, words
):
    config = variational_config("gaussian")
    config.learning.update(changes)
    with pytest.raises(ConfigError, match=words):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["kl_warmup_steps", "kl_balance", "spectral_penalty"])
def test_settings_of_an_encoder_are_refused_without_one(tmp_path, test_config, name):
    test_config.learning[name] = type(test_config.learning[name])(1)
    with pytest.raises(
        ConfigError, match=f"{name} needs learning.method 'variational'"
    ):
        run(test_config, tmp_path / "run")


def test_backbone_with_batch_statistics_is_refused_with_a_posterior_chain(
    test_config, monkeypatch
):
    monkeypatch.setitem(spec.BACKBONES, "vector", NormalisedBackbone)
    with pytest.raises(ConfigError, match=r"does not support .*batch_stats"):
        build_model(test_config)


@jax.numpy_dtype_promotion("standard")  # which optax needs
def test_rate_rises_to_its_full_value_and_falls_as_a_cosine(test_config):
    fields = test_config.learning
    fields.update(num_steps=20, warmup_steps=4, backbone_lr=1.0, final_lr_fraction=0.1)
    optimizer = learner.create_optimizer(options.read(test_config).learning)
    params = jebm.Params({"w": jnp.ones(1)}, {})
    state, rates, update = optimizer.init(params), [], jax.jit(optimizer.update)
    for _ in range(20):
        updates, state = update(params, state, params)
        rates.append(-updates.backbone["w"].item())  # Adam's step is 1
    cosine = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * np.arange(16) / 16))
    np.testing.assert_allclose(rates, [0, 0.25, 0.5, 0.75, *cosine], rtol=1e-4)
