import doctest
import json
import shutil

import jax
import numpy as np
import pytest

from experiments import models, options
from experiments.configs import default, test
from experiments.errors import ConfigError
from experiments.evaluation import evaluate
from experiments.rundir import data_note
from experiments.rundir.metrics import read_metrics
from experiments.rundir.settings import check_settings
from experiments.runtime.files import write_json
from experiments.sweeps import stability
from experiments.training import train
from experiments.training.state import checkpoint_items
from jebm import checkpoints
from tests.experiments.runs import build_model, contents, create_state, metrics
from tests.experiments.training.test_train import variational_config
from tests.experiments.training.test_two_stage import two_stage_config

RUNAWAY = {"energy_lr": 3.0, "gradient_penalty": 0.0}
SETTINGS = [{}, RUNAWAY, {"energy_lr": 1e9}]


def tiny():
    config = default.uncorrected(test.get_config())
    config.log.num_walkers = 0  # a sweep has none
    return config


def run(path, settings=SETTINGS, seeds=2, config=None, length=1.0):
    experiment = stability.lengthened((config or tiny()).to_dict(), length)
    stability.run(experiment, path, settings, seeds)


def state_of(path, step):
    """A checkpoint of many runs, or of one, as read back."""
    template = checkpoint_items(create_state(tiny(), build_model(tiny())))
    stored = path / "checkpoints" / str(step)
    assert stored.is_dir()
    names = json.loads((path / "model.json").read_text()).get("vmapped")
    if names is not None:
        template = jax.tree.map(
            lambda leaf: np.zeros((len(names), *leaf.shape), leaf.dtype), template
        )
    return checkpoints.restore(path, template, step)[1]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Two seeds of each setting: as configured, runaway, and not even finite."""
    path = tmp_path_factory.mktemp("stability") / "runs"
    run(path)
    return path


@pytest.fixture(scope="module")
def results(many):
    text = (many / "stability.json").read_text()
    return json.loads(text, parse_constant=pytest.fail)  # JSON has no NaN


@pytest.mark.slow
def test_results_are_of_every_seed_of_every_setting(results):
    assert [(r["setting"], r["seed"]) for r in results] == [
        (setting, seed) for setting in SETTINGS for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def ordinary_run(tmp_path_factory):
    """One training by the settings of the sweep."""
    path = tmp_path_factory.mktemp("ordinary") / "run"
    train.train(options.read(tiny()), path)
    return path


def test_run_as_configured_is_the_ordinary_training_of_its_seed(many, ordinary_run):
    """Not to the bit: the rates are float32, the batch is on one device."""
    state = checkpoint_items(create_state(tiny(), build_model(tiny())))
    start, ordinary, vmapped = (
        jax.tree.leaves((items["ema"], items["train_state"]["params"]))
        for items in (state, state_of(ordinary_run, 8), state_of(many, 8))
    )
    for first, trained, of_many in zip(start, ordinary, vmapped, strict=True):
        moved = np.abs(trained - first).max()
        assert moved > 0
        np.testing.assert_allclose(of_many[0], trained, rtol=0, atol=1e-3 * moved)
        assert np.abs(of_many[1] - trained).max() > 0.1 * moved  # another seed


def test_metrics_of_a_run_are_those_of_the_ordinary_training(many, ordinary_run):
    ours, theirs = read_metrics(many), metrics(ordinary_run)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for line, ordinary in zip(ours, theirs, strict=True):
        assert line["violations"][:2] == [None, None]
        assert ordinary.pop("rollbacks") == 0
        for name in ordinary.keys() - {"step"}:
            # Examined are the first 16 images, of two devices 8 each there.
            if not name.endswith(("acceptance", "stiffness")):
                np.testing.assert_allclose(
                    line[name][0], ordinary[name], rtol=1e-3, atol=1e-5, err_msg=name
                )


def test_images_are_noted_as_by_the_ordinary_training(many, ordinary_run):
    [entry] = data_note.read(many)
    assert entry["step"] == 0 and {"train", "test"} < set(entry)
    assert data_note.read(ordinary_run) == [entry]


def test_images_that_have_changed_are_told(many, tmp_path, monkeypatch, capsys):
    path = tmp_path / "runs"
    shutil.copytree(many, path)
    [entry] = data_note.read(path)
    entry["train"]["num"] += 1
    write_json(path / "data.json", [entry])
    monkeypatch.setattr(stability, "numbers_of", lambda *_: {})
    run(path)
    assert f"have changed since step 0 of {path}: train: " in capsys.readouterr().out
    assert data_note.read(path) == [entry]  # nothing more was learned


@pytest.mark.slow
def test_distances_of_a_run_are_those_of_the_ordinary_training(results, ordinary_run):
    evaluate.evaluate(options.read(tiny()), ordinary_run)
    found = json.loads((ordinary_run / "eval.json").read_text())
    names = [name for name in found if name.startswith("frechet")]
    assert len(names) == 7
    for name in names:
        assert results[0][name] == pytest.approx(found[name], rel=1e-3)
    assert results[0]["frechet"] != results[1]["frechet"]


def test_runs_beyond_the_limits_are_told_and_leave_the_others_alone(many, results):
    assert [bool(r["diverged"]) for r in results] == [False] * 2 + [True] * 4
    lines = read_metrics(many)
    for i in (2, 3):
        assert "beyond" in results[i]["diverged"]
        assert abs(results[i]["largest_energy_gap_nats"]) > 50
        first = next(line for line in lines if line["violations"][i])
        message = f"step {first['step']}: {first['violations'][i]}"
        assert results[i]["diverged"] == message
    for i in (4, 5):
        assert results[i]["diverged"].endswith("not finite")
        assert lines[-1]["loss_nats"][i] is None
        assert "frechet" not in results[i]
        assert "frechet_real" in results[i]
    for i in (0, 1):
        assert abs(results[i]["largest_energy_gap_nats"]) < 1
        assert all(np.isfinite(line["loss_nats"][i]) for line in lines)


def test_table_has_a_row_per_setting(results, capsys):
    stability._print_table(SETTINGS, results)
    head, rule, *rows = capsys.readouterr().out.splitlines()
    assert {line.count("|") for line in (head, rule, *rows)} == {head.count("|")}
    cells = [[cell.strip() for cell in row.split("|")[1:3]] for row in rows]
    assert cells == [
        ["as configured", "0 of 2"],
        ["energy_lr 3, gradient_penalty 0", "2 of 2"],
        ["energy_lr 1e+09", "2 of 2"],
    ]
    assert "Frechet 1x" in head


@pytest.mark.slow
def test_runs_cut_off_go_on_from_their_checkpoint_as_if_nothing_had_happened(
    many, tmp_path, monkeypatch
):
    path, save = tmp_path / "cut", checkpoints.write

    def save_and_stop(manager, step, items):
        save(manager, step, items)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            run(path)
    assert checkpoints.steps(path) == [4]
    assert not (path / "stability.json").exists()
    # A line of after the checkpoint, as a kill at a later step would leave.
    text = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(text + '{"step": 6, "violations": []}\n')
    run(path)
    assert checkpoints.digests(state_of(path, 8)) == checkpoints.digests(
        state_of(many, 8)
    )
    for name in ("metrics.jsonl", "stability.json"):
        assert (path / name).read_text() == (many / name).read_text()


@pytest.mark.parametrize(
    ("settings", "seeds", "batch_size", "words"),
    [
        (SETTINGS, 3, 20, "other runs"),
        ([{}, RUNAWAY, {"energy_lr": 1e8}], 2, 20, "other runs"),
        (SETTINGS, 2, 40, "learning.batch_size is 20 there, 40 here"),
    ],
)
def test_directory_of_other_runs_is_refused_and_left_as_it_is(
    many, tmp_path, settings, seeds, batch_size, words
):
    path, config = shutil.copytree(many, tmp_path / "runs"), tiny()
    config.learning.batch_size = batch_size
    with pytest.raises(ConfigError, match=words):
        run(path, settings, seeds, config)
    assert contents(path) == contents(many)


@pytest.mark.parametrize("purpose", ["train", "read"])
def test_directory_of_a_sweep_is_no_single_run(many, purpose):
    with pytest.raises(ConfigError, match="holds many runs of a sweep, not one"):
        check_settings(many, options.read(tiny()), purpose)


@pytest.mark.slow
def test_gaussian_twin_has_runs_without_an_energy(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stability, "numbers_of", lambda *_: {"frechet": 1.0})
    config = tiny()
    config.prior = "gaussian"
    run(tmp_path / "runs", [{}], config=config, length=0.25)
    found = json.loads((tmp_path / "runs" / "stability.json").read_text())
    assert [r["diverged"] for r in found] == [None, None]
    assert all(r["frechet"] == 1 for r in found)
    assert not any("prior" in name for name in found[0])
    assert "| as configured | 0 of 2 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nope=1", r"unknown 'nope'; known: \('backbone_lr', 'energy_lr'"),
        ("energy_lr=1,num_steps=3", "unknown 'num_steps'"),
        ("energy_lr=fast", "'energy_lr=fast' is not FIELD=NUMBER"),
        ("energy_lr", "'energy_lr' is not FIELD=NUMBER"),
    ],
)
def test_setting_that_cannot_be_is_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        stability.parse_setting(text)


def test_energies_of_two_stages_are_refused_without_a_backbone(tmp_path, monkeypatch):
    first = options.read(variational_config("gaussian"))
    monkeypatch.setattr(models, "stage_one", lambda experiment: first)
    with pytest.raises(ConfigError, match="needs a trained backbone for every run"):
        run(tmp_path / "runs", [{}], config=two_stage_config())
    assert not (tmp_path / "runs").exists()


def test_settings_are_fields_and_numbers():
    assert stability.parse_setting("") == {}
    assert stability.parse_setting("energy_lr=3,gradient_penalty=0") == RUNAWAY
    assert doctest.testmod(stability).failed == 0


@pytest.mark.parametrize("value", ["inf", "nan", "-inf"])
def test_settings_and_lengths_that_are_not_finite_are_refused(value):
    with pytest.raises(ConfigError, match="energy_lr must be finite"):
        stability.parse_setting(f"energy_lr={value}")
    with pytest.raises(ConfigError, match="--length must be finite"):
        stability.lengthened(tiny().to_dict(), float(value))
