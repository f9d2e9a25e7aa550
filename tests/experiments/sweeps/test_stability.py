import doctest
import json
import shutil

import jax
import numpy as np
import pytest

from experiments.errors import ConfigError
from experiments.evaluation import evaluate
from experiments.rundir.metrics import read_metrics
from experiments.sweeps import stability
from experiments.training import train, two_stage
from experiments.training.state import checkpoint_items
from jebm import checkpoints
from tests.experiments.runs import contents, metrics
from tests.experiments.training.test_train import variational_config
from tests.experiments.training.test_two_stage import two_stage_config

RUNAWAY = {"energy_lr": 3.0, "gradient_penalty": 0.0}
SETTINGS = [{}, RUNAWAY, {"energy_lr": 1e9}]


def tiny():
    from experiments.configs import test

    return test.get_config()


def state_of(path, step):
    """A checkpoint of the lanes, or of a run, as read back."""
    model = train.build_model(tiny(), (8, 8, 1))
    template = checkpoint_items(train.create_state(tiny(), model))
    stored = path / "checkpoints" / str(step)
    assert stored.is_dir()
    lanes = json.loads((path / "model.json").read_text()).get("lanes")
    if lanes is not None:
        template = jax.tree.map(
            lambda leaf: np.zeros((len(lanes), *leaf.shape), leaf.dtype), template
        )
    return checkpoints.restore(path, template, step)[1]


@pytest.fixture(scope="module")
def lanes(tmp_path_factory):
    """Two seeds of each setting: as configured, runaway, and not even finite."""
    path = tmp_path_factory.mktemp("stability") / "lanes"
    stability.run(tiny(), path, SETTINGS, seeds=2, length=1.0)
    return path


@pytest.fixture(scope="module")
def results(lanes):
    text = (lanes / "stability.json").read_text()
    return json.loads(text, parse_constant=pytest.fail)  # JSON has no NaN


@pytest.mark.slow
def test_results_are_of_every_seed_of_every_setting(results):
    assert [(r["setting"], r["seed"]) for r in results] == [
        (setting, seed) for setting in SETTINGS for seed in (0, 1)
    ]


def test_lane_as_configured_is_the_ordinary_training_of_its_seed(lanes, trained_run):
    """Not to the bit: the rates are float32, the batch is on one device."""
    model = train.build_model(tiny(), (8, 8, 1))
    state = checkpoint_items(train.create_state(tiny(), model))
    start, ordinary, lane = (
        jax.tree.leaves((items["ema"], items["train_state"]["params"]))
        for items in (state, state_of(trained_run, 8), state_of(lanes, 8))
    )
    for first, trained, of_lanes in zip(start, ordinary, lane, strict=True):
        moved = np.abs(trained - first).max()
        assert moved > 0
        np.testing.assert_allclose(of_lanes[0], trained, rtol=0, atol=1e-3 * moved)
        assert np.abs(of_lanes[1] - trained).max() > 0.1 * moved  # another seed


def test_metrics_of_a_lane_are_those_of_the_ordinary_training(lanes, trained_run):
    ours, theirs = read_metrics(lanes), metrics(trained_run)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for line, ordinary in zip(ours, theirs, strict=True):
        assert line["wrong"][:2] == [None, None]
        assert ordinary.pop("rescues") == 0
        for name in ordinary.keys() - {"step"}:
            # Examined are the first 16 images, of two devices 8 each there.
            if not name.endswith(("acceptance", "stiffness")):
                np.testing.assert_allclose(
                    line[name][0], ordinary[name], rtol=1e-3, atol=1e-5, err_msg=name
                )


def test_distances_of_a_lane_are_those_of_the_ordinary_training(results, trained_run):
    found = json.loads((trained_run / "eval.json").read_text())
    names = [name for name in found if name.startswith("frechet")]
    assert len(names) == 5
    for name in names:
        assert results[0][name] == pytest.approx(found[name], rel=1e-3)
    assert results[0]["frechet"] != results[1]["frechet"]


def test_lanes_beyond_the_limits_are_told_and_leave_the_others_alone(lanes, results):
    assert [bool(r["diverged"]) for r in results] == [False] * 2 + [True] * 4
    lines = read_metrics(lanes)
    for i in (2, 3):
        assert "beyond" in results[i]["diverged"]
        assert abs(results[i]["largest_energy_gap_nats"]) > 50
        first = next(line for line in lines if line["wrong"][i])
        assert results[i]["diverged"] == f"step {first['step']}: {first['wrong'][i]}"
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
def test_lanes_cut_off_go_on_from_their_checkpoint_as_if_nothing_had_happened(
    lanes, tmp_path, monkeypatch
):
    path, save = tmp_path / "cut", checkpoints.save

    def save_and_stop(manager, step, items):
        save(manager, step, items)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            stability.run(tiny(), path, SETTINGS, seeds=2, length=1.0)
    assert checkpoints.steps(path) == [4]
    assert not (path / "stability.json").exists()
    # A line of after the checkpoint, as a kill at a later step would leave.
    text = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(text + '{"step": 6, "wrong": []}\n')
    stability.run(tiny(), path, SETTINGS, seeds=2, length=1.0)
    assert checkpoints.digests(state_of(path, 8)) == checkpoints.digests(
        state_of(lanes, 8)
    )
    for name in ("metrics.jsonl", "stability.json"):
        assert (path / name).read_text() == (lanes / name).read_text()


@pytest.mark.parametrize(
    ("settings", "seeds", "batch_size", "words"),
    [
        (SETTINGS, 3, 20, "other lanes"),
        ([{}, RUNAWAY, {"energy_lr": 1e8}], 2, 20, "other lanes"),
        (SETTINGS, 2, 40, "learning.batch_size is 20 there, 40 here"),
    ],
)
def test_directory_of_other_lanes_is_refused_and_left_as_it_is(
    lanes, tmp_path, settings, seeds, batch_size, words
):
    path, config = shutil.copytree(lanes, tmp_path / "lanes"), tiny()
    config.learning.batch_size = batch_size
    with pytest.raises(ConfigError, match=words):
        stability.run(config, path, settings, seeds, length=1.0)
    assert contents(path) == contents(lanes)


@pytest.mark.slow
def test_gaussian_twin_has_lanes_without_an_energy(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "distances", lambda *arguments: {"frechet": 1.0})
    config = tiny()
    config.prior = "gaussian"
    stability.run(config, tmp_path / "lanes", [{}], seeds=2, length=0.25)
    found = json.loads((tmp_path / "lanes" / "stability.json").read_text())
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
    first = variational_config("gaussian")
    monkeypatch.setattr(two_stage, "stage_one", lambda config: first)
    with pytest.raises(ConfigError, match="needs a trained backbone for every lane"):
        stability.run(two_stage_config(), tmp_path / "lanes", [{}], 2, 1.0)
    assert not (tmp_path / "lanes").exists()


def test_settings_are_fields_and_numbers():
    assert stability.parse_setting("") == {}
    assert stability.parse_setting("energy_lr=3,gradient_penalty=0") == RUNAWAY
    assert doctest.testmod(stability).failed == 0
