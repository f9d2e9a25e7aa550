import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import jebm
from experiments import options
from experiments.errors import ConfigError
from experiments.rundir.metrics import (
    Metrics,
    add_hardware,
    read_metrics,
    training_budget,
)
from experiments.rundir.settings import check_settings, folder_name, variant_of
from experiments.training.state import checkpoint_items
from jebm import checkpoints
from tests.experiments.runs import (
    CONFIG,
    build_model,
    contents,
    create_state,
    run,
    run_main,
    state_digests,
)


@pytest.fixture
def copied_run(trained_run, tmp_path):
    return shutil.copytree(trained_run, tmp_path / "run")


def set_field(config, field, value):
    """Sets a field of a configuration, named with dots."""
    *above, name = field.split(".")
    for part in above:
        config = config[part]
    config[name] = value


def test_run_directory_holds_what_the_run_is_and_did(trained_run):
    assert {p.name for p in trained_run.iterdir()} >= {
        "checkpoints",
        "config.json",
        "figures",
        "hardware.json",
        "metrics.jsonl",
        "model.json",
        "report.html",
        "samples",
    }


def test_config_json_is_the_configuration(trained_run, test_config):
    stored = json.loads((trained_run / "config.json").read_text())
    assert stored == json.loads(test_config.to_json())


def test_model_json_builds_the_model(trained_run, test_config):
    built = jebm.build(json.loads((trained_run / "model.json").read_text()))
    # With the step that training has come to.
    test_config.chains.prior.step_size = built.chains.prior.step_size
    assert built == build_model(test_config)
    assert built.backbone.latent_dims == (4, 2)
    assert built.energy.widths == (8,)
    assert built.chains.prior.num_steps == 4


def test_metrics_are_finite_numbers_by_name_at_increasing_steps(trained_run):
    text = (trained_run / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    for line in lines:
        expected = {
            "step",
            "energy_gap_nats",
            "energy_negative_nats",
            "energy_positive_nats",
            "grad_norm",
            "images_per_second",
            "log_likelihood_nats",
            "log_z_effective_samples",
            "log_z_error_nats",
            "log_z_nats",
            "log_prior_negative_nats",
            "log_prior_positive_nats",
            "loss_nats",
            "posterior_grad_norm",
            "prior_acceptance_rate",
            "prior_eps_square",
            "prior_grad_norm",
            "prior_step_size",
            "rollbacks",
        }
        if line["step"] in (4, 8):
            expected |= {"posterior_acceptance", "posterior_stiffness"}
            expected |= {"prior_acceptance", "prior_stiffness"}
        assert set(line) == expected
        assert np.isfinite(list(line.values())).all()


def test_metrics_agree_among_themselves(trained_run):
    for line in read_metrics(trained_run):
        gap = line["energy_negative_nats"] - line["energy_positive_nats"]
        assert line["energy_gap_nats"] == pytest.approx(gap, abs=1e-6)
        loss = -line["log_likelihood_nats"] - line["log_prior_positive_nats"]
        loss += line["log_prior_negative_nats"] - gap
        assert line["loss_nats"] == pytest.approx(loss, rel=1e-5)  # penalties: ~1e-9


def test_checkpoints_are_kept_at_their_steps(trained_run):
    assert checkpoints.steps(trained_run) == [4, 8]


@pytest.mark.parametrize("name", ["ebm", "gaussian", "reconstruction"])
def test_samples_are_grids_of_16_images(trained_run, name):
    files = sorted((trained_run / "samples").glob(f"{name}_*.png"))
    assert [f.stem for f in files] == [f"{name}_0000004", f"{name}_0000008"]
    for file in files:
        with Image.open(file) as picture:
            picture.load()
            assert picture.mode == "L"
            assert picture.width == picture.height >= 640
            assert len(picture.getcolors()) > 10


@pytest.mark.parametrize("step", [None, 4])
def test_load_gives_the_averaged_parameters_bit_for_bit(trained_run, test_config, step):
    model, params = jebm.load(trained_run, step=step)
    # With the step that training has come to.
    test_config.chains.prior.step_size = model.chains.prior.step_size
    assert model == build_model(test_config)
    stored = state_digests(test_config, trained_run, step or 8)
    loaded = checkpoints.digests({"ema": params})
    assert loaded
    assert loaded == {k: v for k, v in stored.items() if k.startswith("['ema']")}


def test_averaged_parameters_are_neither_the_last_nor_the_first(
    trained_run, test_config
):
    state = create_state(test_config, build_model(test_config))
    items = checkpoints.restore(trained_run, checkpoint_items(state))[1]
    kernel = [
        tree.backbone["params"]["decoder"]["Dense_0"]["kernel"]
        for tree in (state.learner.params, items["ema"], items["train_state"]["params"])
    ]
    assert not np.array_equal(kernel[0], kernel[1])
    assert not np.array_equal(kernel[1], kernel[2])


def test_sampling_again_gives_the_same_bytes_and_another_seed_others(
    copied_run, trained_run, capsys
):
    mode = (CONFIG, f"--workdir={copied_run}", "--mode=sample")
    trained = contents(trained_run / "samples")
    shutil.rmtree(copied_run / "samples")
    run_main(*mode)
    again = contents(copied_run / "samples")
    names = {"ebm_0000008.png", "gaussian_0000008.png", "reconstruction_0000008.png"}
    assert again == {name: trained[name] for name in names}
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == f"Look at {copied_run / 'report.html'}"
    assert {line.rsplit("/", 1)[1] for line in printed[:-1]} == names

    run_main(*mode, "--config.seed=1")
    after = contents(copied_run / "samples")
    assert {name: after[name] for name in names} == again  # those of the run stay
    other = contents(copied_run / "samples" / "seed=1")
    assert set(other) == names
    assert all(other[name] != again[name] for name in names)
    assert "With seed=1" in (copied_run / "report.html").read_text()
    assert contents(copied_run / "checkpoints") == contents(trained_run / "checkpoints")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backbone.latent_dims", (4, 3)),
        ("energy.widths", (9,)),
        ("likelihood.scale", 0.3),
        ("likelihood.name", "bernoulli"),
        ("prior", "gaussian"),
        ("seed", 1),
        ("data.labels", (0, 1)),
        ("chains.prior.num_steps", 5),
        ("chains.posterior.step_size", 0.2),
        ("learning.batch_size", 40),
        ("learning.energy_lr", 0.5),
    ],
)
def test_run_with_other_settings_is_refused_and_left_as_it_is(
    copied_run, trained_run, test_config, field, value
):
    there = dict(options.flat(options.read(test_config).to_dict()))[field]
    if field == "likelihood.name":
        del test_config.likelihood.scale
    set_field(test_config, field, value)
    here = list(value) if isinstance(value, tuple) else value
    words = re.escape(f"{field} is {there} there, {here} here")
    with pytest.raises(ConfigError, match=words):
        run(test_config, copied_run)
    assert contents(copied_run) == contents(trained_run)


@pytest.mark.parametrize("purpose", ["train", "read"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("log.every", 1),
        ("log.keep", 7),
        ("log.num_samples", 4),
        ("learning.num_steps", 12),
        ("data.data_dir", "/elsewhere"),
        ("data.on_corrupt", "skip"),
        ("eval.num_samples", 7),
        ("monitor.energy_gap_nats", 7.0),
    ],
)
def test_log_length_limits_and_place_of_the_data_may_change(
    trained_run, test_config, purpose, field, value
):
    set_field(test_config, field, value)
    check_settings(trained_run, options.read(test_config), purpose)


@pytest.mark.parametrize(
    ("field", "value"), [("chains.prior.num_steps", 9), ("seed", 5)]
)
def test_chains_and_seed_may_change_for_reading(trained_run, test_config, field, value):
    set_field(test_config, field, value)
    experiment = options.read(test_config)
    check_settings(trained_run, experiment, "read")
    with pytest.raises(ConfigError, match=re.escape(field)):
        check_settings(trained_run, experiment, "train")


def test_energies_and_their_chains_do_not_count_under_a_gaussian_prior(
    tmp_path, test_config
):
    test_config.prior = "gaussian"
    (tmp_path / "config.json").write_text(test_config.to_json())
    test_config.chains.prior.update(name="mala", num_steps=7)
    test_config.learning.update(persistent_steps=3, energy_lr=0.5)
    check_settings(tmp_path, options.read(test_config), "train")
    test_config.chains.posterior.num_steps = 3
    with pytest.raises(ConfigError, match=r"settings: chains\.posterior\.num_steps is"):
        check_settings(tmp_path, options.read(test_config), "train")


def test_fields_that_an_older_run_does_not_know_are_as_by_default(
    tmp_path, test_config
):
    settings = json.loads(test_config.to_json())
    del settings["learning"]["energy_weight_decay"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    check_settings(tmp_path, options.read(test_config), "train")
    test_config.learning.energy_weight_decay = 0.1
    experiment = options.read(test_config)
    words = r"learning\.energy_weight_decay is 0\.0 there, 0\.1 here"
    with pytest.raises(ConfigError, match=words):
        check_settings(tmp_path, experiment, "train")


def test_model_may_not_change_for_reading(trained_run, test_config):
    test_config.backbone.latent_dims = (4, 3)
    with pytest.raises(ConfigError, match=re.escape("backbone.latent_dims")):
        check_settings(trained_run, options.read(test_config), "read")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("log.num_samples", 15),
        ("log.num_samples", 25),
        ("log.checkpoint_every", 5),
    ],
)
def test_settings_that_cannot_work_are_refused_before_the_workdir_exists(
    tmp_path, test_config, field, value
):
    set_field(test_config, field, value)
    with pytest.raises(ConfigError, match=re.escape(field)):
        run(test_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_batch_that_devices_cannot_share_is_refused_before_the_workdir_exists(
    tmp_path, test_config
):
    test_config.learning.update(batch_size=21, persistent_chains=42)
    words = r"learning\.batch_size must be a multiple of the 2 devices, got 21"
    with pytest.raises(ConfigError, match=words):
        run(test_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_metrics_beyond_the_step_and_a_cut_off_line_are_dropped(tmp_path):
    writer = Metrics(tmp_path, 0, 0)
    for step in (2, 4, 6):
        writer.write(step, {"loss_nats": step / 2})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "loss')  # killed while writing
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 4, 6]

    writer = Metrics(tmp_path, 4, 0)
    writer.write(6, {"loss_nats": 7.0})
    writer.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 2, "loss_nats": 1.0},
        {"step": 4, "loss_nats": 2.0},
        {"step": 6, "loss_nats": 7.0},
    ]


def test_metrics_go_back_with_a_rollback_and_keep_what_it_said(tmp_path):
    writer = Metrics(tmp_path, 0, 0)
    for step in (2, 4):
        writer.write(step, {"rollbacks": 0})
    first = {"step": 2, "rollbacks": 1, "rollback": "Rollback 1"}
    writer.rewind(2, 1, "Rollback 1")
    assert read_metrics(tmp_path) == [{"step": 2, "rollbacks": 0}, first]
    writer.write(4, {"rollbacks": 1})
    writer.rewind(0, 2, "Rollback 2")
    second = {"step": 0, "rollbacks": 2, "rollback": "Rollback 2"}
    assert read_metrics(tmp_path) == [first, second]
    writer.close()

    # A run that is killed and goes on from before the second rollback repeats it.
    Metrics(tmp_path, 0, 1).close()
    assert read_metrics(tmp_path) == [first]


def test_metrics_can_be_read_while_they_are_written(tmp_path):
    writer = Metrics(tmp_path, 0, 0)
    writer.write(2, {"loss_nats": 1.0})
    assert read_metrics(tmp_path) == [{"step": 2, "loss_nats": 1.0}]
    writer.close()


def test_what_training_took_is_read_from_its_metrics(tmp_path, test_config):
    lines = [
        {"step": 2, "images_per_second": 10.0},  # 40 images
        {"step": 4, "images_per_second": 20.0},
        {"step": 4, "rollback": "once"},
        {"step": 5},  # too soon after compiling to tell
        {"step": 8, "images_per_second": 30.0},  # 60 images
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    found = training_budget(tmp_path, options.read(test_config))
    assert found == {"training_images": 160, "training_seconds": 4.0 + 2.0 + 2.0}
    for hardware in ("8 x TPU", "1 x GPU", "8 x TPU"):
        add_hardware(tmp_path, hardware)
    found = training_budget(tmp_path, options.read(test_config))
    assert found["training_hardware"] == "8 x TPU; 1 x GPU"


def test_long_variant_has_a_short_folder_and_is_known_by_it(tmp_path):
    variants = [f"chains.prior.step_size=0.{i}{300 * '1'}" for i in range(2)]
    names = [folder_name(tmp_path, variant) for variant in variants]
    assert len(set(names)) == 2 and max(map(len, names)) <= 160
    assert [variant_of(tmp_path, name) for name in names] == variants


def test_short_variant_is_its_folder_and_nothing_is_written(tmp_path):
    assert folder_name(tmp_path, "seed=3") == variant_of(tmp_path, "seed=3") == "seed=3"
    assert folder_name(tmp_path, "") == ""
    assert list(tmp_path.iterdir()) == []
