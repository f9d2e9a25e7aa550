"""The side-by-side of priors, on a run of a minute."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import jebm
from experiments import options
from experiments.errors import ConfigError
from experiments.evaluation import layer_scores, sample_sets
from experiments.models import build_model
from experiments.rundir.settings import read_settings
from experiments.runs import open_run
from experiments.runtime.files import read_json
from jebm import priors
from tests.experiments.runs import ROOT
from tools.priors import learn, page, settings, tune
from tools.priors.__main__ import write_run


def command(*arguments):
    process = subprocess.run(
        [sys.executable, "-m", "tools.priors", *arguments],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    return process.returncode, process.stdout + process.stderr


@pytest.mark.slow
def test_rows_are_measured_once_and_the_pages_show_them(bench_of, tmp_path):
    bench = bench_of(tmp_path)
    for name in ("gaussian", "flow"):
        bench.row(name, 0)
    page.write(tmp_path, bench.floor, "About.")
    flow = read_json(tmp_path / "flow" / "seed0" / "measured.json")
    gaussian = read_json(tmp_path / "gaussian" / "seed0" / "measured.json")
    assert gaussian["parameters"] == 0
    assert gaussian["log_z"] == 0
    assert flow["learned"]["updates"] > 0
    assert np.isfinite([flow["frechet"], flow["nats"], flow["auprc"]]).all()
    run = open_run(
        options.read(read_settings(tmp_path / "flow/seed0/run")),
        tmp_path / "flow/seed0/run",
    )
    samples = jebm.sample(jax.random.key(0), run.model, run.params, 5)
    assert samples.x.shape == (5, *run.model.image_shape)
    numbers = sample_sets.measure(
        jax.random.key(0), run, lambda images: {"mean": images.mean()}
    )
    assert numbers.keys() == {
        "mean", "mean_posterior", "mean_perfect", "mean_untilted", "energy_gap_nats",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="cannot be trained"):
        build_model(run.experiment, run.model.image_shape)
    text = (tmp_path / "priors.md").read_text()
    assert text.startswith("About. Posterior samples of training images: ")
    assert 0 < bench.floor.paired < bench.floor.perfect
    assert {line.split(" | ")[0] for line in text.splitlines()[4:]} == {
        "| flow", "| gaussian",
    }  # fmt: skip
    assert "data:image/png" in (tmp_path / "priors.html").read_text()
    written = (tmp_path / "flow" / "seed0" / "measured.json").stat().st_mtime_ns
    bench.row("flow", 0)
    assert (tmp_path / "flow/seed0/measured.json").stat().st_mtime_ns == written


@pytest.mark.slow
def test_run_of_a_prior_without_a_density_is_sampled_and_has_no_scores(
    encoded_run, tmp_path
):
    frozen = priors.freeze(encoded_run.model, encoded_run.params)
    prior = priors.Diffusion(widths=(8,), chain_steps=2)
    draws = frozen.draws(jax.random.key(0), encoded_run.heldout[:20] / np.float32(255))
    state = prior.init(jax.random.key(1), frozen, draws)
    write_run(tmp_path, encoded_run, priors.Law(prior, frozen, state))
    run = open_run(options.read(read_settings(tmp_path)), tmp_path)
    numbers = sample_sets.measure(
        jax.random.key(0), run, lambda images: {"mean": images.mean()}
    )
    names = {"mean", "mean_posterior", "mean_perfect", "mean_untilted"}
    assert numbers.keys() == names
    with pytest.raises(ConfigError, match=r"prior 'diffusion' of .* has no density"):
        layer_scores.terms_of(jax.random.key(0), run, run.heldout[:3])


@pytest.mark.slow
def test_row_of_a_prior_that_cannot_learn_here_says_why(
    bench_of, tmp_path, monkeypatch
):
    why = "too many units"
    monkeypatch.setattr(priors.Flow, "lacks", lambda self, frozen: why)
    bench = bench_of(tmp_path)
    bench.row("flow", 0)
    page.write(tmp_path, bench.floor, "About.")
    assert f"| {why} |" in (tmp_path / "priors.md").read_text()
    tune.measure_trial(bench, "flow", 0, seed=9)
    assert f"| {why} |" in tune.table(tmp_path)


@pytest.mark.slow
def test_trials_are_measured_once_and_told_in_a_table(bench_of, tmp_path, monkeypatch):
    trials = {"flow": [{"learning_rate": r} for r in (1e-3, 3e-3)], "mixture": []}
    monkeypatch.setattr(settings, "TRIALS", trials)
    bench = bench_of(tmp_path)
    for i in range(2):
        tune.measure_trial(bench, "flow", i, seed=9)
    rates = [
        read_json(tmp_path / "flow" / f"trial{i}" / "measured.json")["trial"]
        for i in range(2)
    ]
    assert rates == ["learning rate .001", "learning rate .003"]
    lines = tune.table(tmp_path).splitlines()
    assert lines[2].startswith("| flow | learning rate .001 | ")
    assert len(lines) == 4
    written = (tmp_path / "flow/trial0/measured.json").stat().st_mtime_ns
    tune.measure_trial(bench, "flow", 0, seed=9)
    assert (tmp_path / "flow/trial0/measured.json").stat().st_mtime_ns == written


def test_every_prior_but_the_gaussian_has_three_trials():
    assert settings.TRIALS.keys() == priors.PRIORS.keys() - {"gaussian"}
    assert {len(trials) for trials in settings.TRIALS.values()} == {3}
    for name, trials in settings.TRIALS.items():
        for trial in trials:
            assert priors.PRIORS[name](**trial)


def test_a_trial_stands_in_place_of_the_setting_that_was_chosen():
    frozen = priors.freeze(*jebm.load_pretrained("digits"))
    for name, trials in settings.TRIALS.items():
        made = [settings.prior(name, frozen, trial) for trial in trials]
        assert len(set(map(repr, made))) == 3
        assert settings.prior(name, frozen) in made
    [first, *_] = settings.TRIALS["mixture"]
    assert settings.prior("mixture", frozen, first).shrinkage == 0.1


@pytest.mark.slow
def test_killed_learning_ends_with_the_same_bits(bench_of, tmp_path, monkeypatch):
    bench = bench_of(tmp_path)
    prior = settings.prior("flow", bench.frozen)
    given = {"seed": 0, "seconds": 0.5, "batch_size": 50}

    def end(path):
        law, facts = learn.learn(
            "flow", prior, bench.frozen, bench.data, path=path, **given
        )
        return law.state, facts

    for name in ("whole", "killed"):  # as many updates as each other
        (tmp_path / name).mkdir()
        plan = {"prior": "flow", "seed": 0, "num_steps": 12, "update_s": 0.01}
        (tmp_path / name / "plan.json").write_text(json.dumps(plan))
    whole, facts = end(tmp_path / "whole")
    assert facts["updates"] == 12
    monkeypatch.setattr(learn, "_SAVE_EVERY", 0.0)

    class Killed(Exception):
        pass

    saves = []
    save = learn._save

    def killing(manager, path, step, state, spent):
        save(manager, path, step, state, spent)
        saves.append(step)
        if step == 5:
            raise Killed

    monkeypatch.setattr(learn, "_save", killing)
    with pytest.raises(Killed):
        end(tmp_path / "killed")
    killed, _ = end(tmp_path / "killed")
    assert saves[:6] == [1, 2, 3, 4, 5, 6]
    for one, other in zip(_leaves(whole), _leaves(killed), strict=True):
        np.testing.assert_array_equal(one, other)


def _leaves(state):
    return jax.tree.leaves(state)


@pytest.mark.slow
def test_command_says_what_is_wrong(tmp_path):
    code, text = command(f"--backbone={tmp_path}", f"--workdir={tmp_path / 'out'}")
    assert code == 1
    assert text.strip().splitlines()[-1].startswith("error:")
    code, text = command(
        f"--backbone={tmp_path}", f"--workdir={tmp_path}", "--priors=flux"
    )
    assert code == 2
    assert "no prior 'flux'; known: joint, gaussian" in text
    code, text = command(
        f"--backbone={tmp_path}", f"--workdir={tmp_path}", "--minutes=0"
    )
    assert "must be a positive number, got '0'" in text


def test_mean_and_spread_of_seeds_are_told():
    runs = [{"frechet": 1.0}, {"frechet": 2.0}, {"lacks": "x"}]
    assert page._spread(runs[:2], "frechet", 2) == "1.50 ± 0.71"
    assert page._spread(runs[:1], "frechet", 1) == "1.0"
    assert page._spread([{}], "frechet", 1) == ""
