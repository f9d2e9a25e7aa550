import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from experiments import command_line, main, options
from experiments.configs import default
from experiments.data import datasets
from experiments.options import flat
from experiments.rundir import of_run
from jebm import kernels, spec
from tests.experiments.runs import CONFIG, ROOT, run_main, start_main

CONFIG_NAMES = (
    "celeba64.py, celeba_hq256.py, celeba_hq256_paper.py, cifar10.py, "
    "cifar10_nvae.py, cifar10_svhn_ood.py, default.py, digits.py, faces.py, "
    "faces_ladder.py, fashion.py, fashion_ladder.py, fashion_maps.py, "
    "fashion_maps_ood.py, fashion_ood.py, lsun.py, "
    "mnist.py, mnist01.py, mnist_anomaly.py, mnist_anomaly_vae.py, "
    "mnist_anomaly_vae1.py, mnist_ladder.py, mnist_ladder_ebm.py, "
    "mnist_mle.py, mnist_ood.py, mnist_uncorrected.py, nvae_celeba64.py, "
    "nvae_celeba_hq256.py, nvae_cifar10.py, nvae_lsun.py, nvae_mnist.py, "
    "nvae_mnist_ebm.py, svhn.py, test.py, vae_mnist.py"
)


def error_of(*arguments):
    """The one-line error that a command line ends in."""
    with pytest.raises(SystemExit) as stopped:
        run_main(*arguments)
    message = stopped.value.code  # text goes to stderr, with exit code 1
    assert isinstance(message, str), "sys.exit without a message"
    assert message.startswith("error: ")
    assert "\n" not in message
    return message


@pytest.fixture
def absent(tmp_path):
    """A workdir that must not be made."""
    yield tmp_path / "run"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("nope=1", ["config has no field 'nope'", "'backbone'", "'seed'"]),
        ("backbone.nope=1", ["config.backbone has no field 'nope'", "'latent_dims'"]),
        ("chains.prior.nope=1", ["config.chains.prior has no", "'step_size'"]),
        ("seed.nope=1", ["config.seed"]),
        ("backbone.latent_dims.nope=1", ["config.backbone.latent_dims"]),
    ],
)
def test_unknown_field_is_named_with_the_known_ones(absent, override, words):
    message = error_of(CONFIG, f"--workdir={absent}", f"--config.{override}")
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        ([CONFIG, "--config.sed=1"], "'seed'"),
        ([CONFIG, "--config.learning.energy_ls=1"], "'energy_lr'"),
        ([CONFIG, "--config.step_size=1"], "'chains.prior.step_size'"),
        ([CONFIG, "--config.batch_size=1"], "'learning.batch_size'"),
        ([CONFIG, "--config.data.name=digit"], "'digits'"),
        ([CONFIG, "--config.backbone.name=laddr"], "'ladder'"),
        ([CONFIG, "--config.backbone.activation=gleu"], "'gelu'"),
        ([CONFIG, "--config.energy.name=layer_wise"], "'layerwise'"),
        ([CONFIG, "--config.prior=gausian"], "'gaussian'"),
        ([CONFIG, "--config.learning.method=variationl"], "'variational'"),
        ([CONFIG, "--config.learning.optimizer=adamx"], "'adamax'"),
        ([CONFIG, "--config.eval.protocol=anomally"], "'anomaly'"),
        (["--config=experiments/configs/minst.py"], "'mnist.py'"),
        ([CONFIG, "--workdr=x"], "workdir"),
        (["--confg=x"], "config"),
    ],
)
def test_what_is_misspelt_is_answered_with_what_was_meant(absent, arguments, meant):
    message = error_of(f"--workdir={absent}", *arguments)
    assert meant in re.split("did you mean", message, flags=re.IGNORECASE)[1]


def test_what_is_like_nothing_known_is_answered_without_a_guess(absent):
    message = error_of(CONFIG, f"--workdir={absent}", "--config.data.name=qqqq")
    assert "did you mean" not in message


def help_of(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        run_main(*arguments)
    assert stopped.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--help", "-h", "--helpfull"])
def test_help_lists_modes_configs_and_common_settings(capsys, flag):
    text = help_of(capsys, flag)
    for name in (
        *command_line.MODES,
        *(n.removesuffix(".py") for n in CONFIG_NAMES.split(", ")),
    ):
        assert re.search(rf"^  {name} +\S", text, re.MULTILINE), name
    assert "--config.learning.num_steps " in text
    assert "--images=FOLDER" in text


def test_help_with_a_config_lists_its_fields(capsys):
    text = help_of(capsys, CONFIG, "--help")
    fields = dict(flat(json.loads(default.get_config().to_json())))
    assert all(f"--config.{field} " in text for field in fields)
    assert re.search(r"--config\.learning\.batch_size +20\n", text)


@pytest.mark.slow
def test_help_of_a_tool_is_its_own():
    process = subprocess.run(
        [sys.executable, "-m", "experiments.sweeps.anomaly", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("Holds out one digit after the other")
    assert "--digits" in process.stdout
    assert "--mode" not in process.stdout


def test_help_names_modes_and_settings_that_exist():
    fields = dict(flat(json.loads(default.get_config().to_json())))
    assert command_line.SETTINGS.keys() <= fields.keys()


@pytest.mark.parametrize(
    ("override", "known"),
    [
        ("data.name", datasets.LOADERS),
        ("backbone.name", spec.BACKBONES),
        ("energy.name", spec.ENERGIES),
        ("likelihood.name", spec.LIKELIHOODS),
        ("chains.prior.space", kernels.SPACES),
        ("chains.posterior.start", kernels.STARTS),
        ("prior", ["ebm", "gaussian"]),
        ("learning.method", ["mle", "variational"]),
        ("eval.protocol", ["classifier"]),
    ],
)
def test_unknown_name_is_answered_with_the_known_ones(absent, override, known):
    message = error_of(CONFIG, f"--workdir={absent}", f"--config.{override}=nope")
    assert "unknown" in message
    assert all(repr(name) in message for name in ["nope", *known]), message


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "--config=FILE is needed"),
        (["--config="], "--config=FILE is needed"),
        (["--config=nope.py"], "no file nope.py"),
    ],
)
def test_missing_config_is_answered_with_the_known_ones(absent, arguments, word):
    message = error_of(f"--workdir={absent}", *arguments)
    assert word in message
    assert CONFIG_NAMES in message


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--mode=score", ["--mode=score and --images=FOLDER go together"]),
        ("--images=there", ["--mode=score and --images=FOLDER go together"]),
        ("--mode=fly", ["fly", "train", "eval", "sample", "figures", "score"]),
        ("--mode=evl", ["did you mean 'eval'"]),
        (
            "--config.learning.batch_size=many",
            ["learning.batch_size must be an integer, got 'many'"],
        ),
        (
            "--config.learning.num_steps=1.5",
            ["learning.num_steps must be an integer, got '1.5'"],
        ),
        (
            "--config.likelihood.scale=wide: open",
            ["likelihood.scale must be a number, got 'wide: open'"],
        ),
        (
            "--config.data.binarize=maybe",
            ["data.binarize must be true or false, got 'maybe'"],
        ),
        ("--config.backbone=3", ["backbone must be a section of fields", "got '3'"]),
        ("--num_processes=two", ["--num_processes must be an integer, got 'two'"]),
        ("--config.data.labels=(1.5,)", ["data.labels must be an integer, got 1.5"]),
        ("--nope=1", ["nope"]),
    ],
)
def test_value_that_does_not_parse_is_named(absent, argument, words):
    message = error_of(CONFIG, f"--workdir={absent}", argument)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "learning.batch_size=21 learning.persistent_chains=42",
            ["learning.batch_size", "2 devices", "21"],
        ),
        (
            "learning.batch_size=21",
            ["learning.persistent_chains", "multiple of the batch_size of 21", "40"],
        ),
        ("learning.batch_size=0", ["learning.batch_size", "got 0"]),
        ("log.num_samples=7", ["log.num_samples", "even square", "7"]),
        ("log.num_samples=9", ["log.num_samples", "even square", "9"]),
        ("log.every=3", ["log.checkpoint_every", "multiple of log.every", "4 and 3"]),
        ("log.keep=2", ["log.keep", "at least 3", "2"]),
        ("data.labels=(3,77)", ["data.labels", "[77]"]),
        ("backbone.latent_dims=(4,-1)", ["latent_dims", "(4, -1)"]),
        (
            "learning.persistent_chains=30",
            ["persistent_chains", "multiple", "20", "30"],
        ),
        ("learning.persistent_chains=-20", ["persistent_chains", "-20"]),
        ("chains.posterior.start=mode", ["mle", "a chains.posterior.start of"]),
        ("chains.prior.start=encoder", ["prior chain", "encoder"]),
        ("likelihood.scale=-1.", ["scale", "positive", "-1.0"]),
        ("monitor.max_rollbacks=-1", ["monitor.max_rollbacks", "at least 0", "-1"]),
        ("eval.num_samples=1", ["eval.num_samples", "at least 2", "1"]),
        ("eval.batch_size=0", ["eval.batch_size", "at least 1", "0"]),
        ("eval.num_diagnosed=0", ["eval.num_diagnosed", "at least 1", "0"]),
    ],
)
def test_setting_out_of_range_is_named(absent, override, words):
    overrides = [f"--config.{each}" for each in override.split()]
    message = error_of(CONFIG, f"--workdir={absent}", *overrides)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("mode", ["eval", "sample", "figures"])
def test_reading_where_there_is_no_run_says_to_train(absent, mode):
    message = error_of(CONFIG, f"--workdir={absent}", f"--mode={mode}")
    assert str(absent) in message
    assert "--mode=train" in message


def test_stray_argument_is_named(absent):
    assert "'nope'" in error_of(CONFIG, f"--workdir={absent}", "nope")


@pytest.mark.parametrize("address", ["gs://bucket/a", "s3://bucket/a"])
def test_bucket_as_workdir_is_refused_before_any_work(tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    assert repr(address) in error_of(CONFIG, f"--workdir={address}")
    assert list(tmp_path.iterdir()) == []


def test_tilde_of_workdir_is_the_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    message = error_of(CONFIG, "--workdir=~/a", "--mode=eval")
    assert f"no run in {tmp_path / 'home' / 'a'}" in message


def test_workdir_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    assert "not a directory" in error_of(CONFIG, f"--workdir={tmp_path / 'run'}")
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.slow
def test_process_ends_in_one_line_on_stderr(absent):
    process = start_main(f"--workdir={absent}", "--config.backbone.nope=1")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    *others, error = stderr.splitlines()
    assert re.fullmatch(r"error: config\.backbone has no field 'nope'.*", error)
    # Some releases of Grain warn of older jaxlibs when they are imported.
    assert all("WARNING:absl:Grain" in line for line in others)


@pytest.mark.slow
def test_training_prints_the_layers_first_and_the_report_last(tmp_path, capsys):
    path = tmp_path / "run"
    run_main(CONFIG, f"--workdir={path}", "--config.learning.num_steps=2")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "image (8, 8, 1), 2 layers of latents, top first:"
    assert lines[1].split()[:2] == ["z_2", "(2,)"]
    assert lines[2].split()[:2] == ["z_1", "(4,)"]
    assert lines[3] == "6 latent units in all"
    kernel = r"\| backbone/params/decoder/Dense_1/kernel +\| \(16, 64\).*\| 1,024 "
    assert any(re.match(kernel, line) for line in lines)
    assert "Total: 1,344 -- 5,376 bytes" in lines
    (step,) = (line for line in lines if line.startswith("step "))
    assert re.match(r"step 2/2  loss +[\d.,-]+  gap +[\d.-]+  images/s +[\d,]+$", step)
    assert lines[-1] == f"Look at {path / 'report.html'}"
    assert (path / "report.html").is_file()


@pytest.mark.parametrize("mode", ["eval", "sample", "figures"])
def test_run_that_is_not_there_is_named_without_a_config_too(absent, mode):
    message = error_of(f"--workdir={absent}", f"--mode={mode}")
    assert f"no run in {absent}: train it first" in message


@pytest.fixture
def own_run(trained_run, tmp_path):
    """A run whose settings are other than those of its config's file."""
    path = shutil.copytree(trained_run, tmp_path / "run")
    values = json.loads((path / "config.json").read_text())
    values["log"]["num_samples"] = 4
    values["eval"]["num_samples"] = 7
    (path / "config.json").write_text(json.dumps(values))
    return path


@pytest.fixture
def asked(monkeypatch):
    """What the modes that read a run are called with."""
    kept = []
    monkeypatch.setattr(main.samples, "sample", lambda *given: kept.append(given))
    return kept


def test_settings_of_a_run_are_not_typed_again(own_run, asked, capsys):
    run_main(f"--workdir={own_run}", "--mode=sample")
    run_main("--mode", "sample", CONFIG, "--workdir", own_run)
    assert [path for _, path in asked] == [own_run, own_run]
    for experiment, _ in asked:
        assert experiment == options.read(of_run.get_config(str(own_run)))
    look = f"Look at {own_run / 'report.html'}"
    assert capsys.readouterr().out.splitlines() == [
        look,
        f"Using the settings of {own_run}. {CONFIG.removeprefix('--config=')} "
        "differs in eval.num_samples, log.num_samples.",
        look,
    ]


def test_config_of_the_default_workdir_is_enough(own_run, asked, monkeypatch, tmp_path):
    (tmp_path / "runs").mkdir()
    own_run.rename(tmp_path / "runs" / "test")
    monkeypatch.chdir(tmp_path)
    run_main(CONFIG, "--mode=sample")
    assert asked[0][0].log.num_samples == 4


def test_settings_of_a_run_are_overridden_by_type(own_run, asked):
    flags = ("chains.prior.num_steps=9", "data.image_shape=(8,8,1)", "prior=gaussian")
    run_main(f"--workdir={own_run}", "--mode=sample", *(f"--config.{f}" for f in flags))
    experiment = asked[0][0]
    assert experiment.chains["prior"]["num_steps"] == 9
    assert experiment.data.image_shape == (8, 8, 1)
    assert experiment.prior == "gaussian"  # check_settings refuses it


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("chains.prior.num_step=9", "did you mean 'num_steps'"),
        ("data.heldout_digit=3", "now called config.data.heldout_class"),
        ("seed=x", "seed"),
    ],
)
def test_wrong_overrides_of_a_run_are_told_as_of_a_config(own_run, override, words):
    message = error_of(f"--workdir={own_run}", "--mode=sample", f"--config.{override}")
    assert words in message


def test_damaged_settings_of_a_run_are_told_by_name(own_run):
    (own_run / "config.json").write_text("{")
    message = error_of(f"--workdir={own_run}", "--mode=sample")
    assert f"{own_run / 'config.json'} cannot be read" in message


@pytest.mark.slow
def test_overrides_are_named_and_others_refused(own_run, capsys):
    run_main(
        f"--workdir={own_run}", "--mode=sample", "--config.chains.prior.num_steps=2"
    )
    printed = capsys.readouterr().out
    assert "Overridden: chains.prior.num_steps=2 (4 in the run).\n" in printed
    assert "chains.prior.num_steps=2/ebm_0000008.png" in printed
    message = error_of(
        f"--workdir={own_run}", "--mode=sample", "--config.prior=gaussian"
    )
    assert "prior is ebm there, gaussian here" in message


@pytest.mark.slow
def test_as_a_script_it_works_from_anywhere(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    file = os.path.relpath(ROOT / "experiments" / "main.py", tmp_path)
    done = subprocess.run(
        [sys.executable, file, CONFIG, "--workdir=a", "--config.seed=x"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "error: seed must be an integer, got 'x'"
