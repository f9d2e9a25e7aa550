"""The one command, from a data set to the folder that is kept."""

import json
import os
import shutil
import subprocess
import sys

import jax
import pytest

import jebm
from experiments.errors import ConfigError
from experiments.evaluation.frechet import Frechet
from experiments.rundir.metrics import read_metrics
from jebm import checkpoints
from tests.experiments.runs import ROOT
from tools.headline import measure, outcome, weights

# Smaller than --smallest, to be done within a minute.
_TINY = {
    "backbone.decoder_widths": "(16,)", "backbone.encoder_widths": "(16,)",
    "backbone.latent_dims": "(4,)", "backbone.prior_widths": "()",
    "energy.widths": "(8,)", "chains.prior.num_steps": 2,
    "learning.batch_size": 20, "learning.persistent_chains": 20,
    "learning.persistent_steps": 2, "learning.num_steps": 6,
    "log.every": 2, "log.checkpoint_every": 6, "log.sample_every": 6,
    "log.diagnose_every": 6, "log.num_samples": 4,
    "eval.protocol": "likelihood", "eval.likelihood.num_images": 4,
    "eval.likelihood.num_samples": 10, "eval.likelihood.num_temperatures": 10,
    "eval.likelihood.batch_size": 4, "eval.num_diagnosed": 4, "eval.batch_size": 4,
    "eval.num_samples": 4,
}  # fmt: skip


@pytest.mark.slow
def test_one_command_trains_measures_and_packs(tmp_path):
    fields = [f"--config.{name}={value}" for name, value in _TINY.items()]
    command = [
        sys.executable, "-m", "tools.headline", "--data=digits", "--smallest",
        f"--workdir={tmp_path / 'half'}", "--minutes=60", *fields,
    ]  # fmt: skip
    settings = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | settings, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kept = tmp_path / "half" / "kept"
    assert f"Kept in {kept}: " in done.stdout
    names = {file.name for file in kept.iterdir()}
    assert {"eval.json", "ebm_0000006.png", "metrics.jsonl", "config.json"} <= names
    assert [line["step"] for line in read_metrics(kept)] == [2, 4, 6]
    found = json.loads((kept / "hardware.json").read_text())
    assert found["step"] == 6 and found["training_seconds"] > 0
    assert found["platform"] == "cpu" and found["num_devices"] >= 1
    assert found["images_per_second"] == outcome.images_a_second(kept) > 0
    used = found["flops_per_step"] * found["images_per_second"] / 20
    assert found["flops_per_second"] == pytest.approx(used)
    for name, share in found["share_of_peak"].items():
        assert share == pytest.approx(used / found["peak_flops_per_second"][name])
    model, params = weights.read(kept)
    assert jebm.sample(jax.random.key(0), model, params, 2).x.shape == (2, 8, 8, 1)


@pytest.mark.slow
def test_a_run_that_was_stopped_is_measured_as_far_as_it_can_be(
    trained_run, tmp_path, monkeypatch
):
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    shutil.rmtree(run / "samples")
    step = checkpoints.steps(run)[-1]
    reason = "there is no classifier"
    monkeypatch.setattr(Frechet, "lacks", lambda self, experiment: reason)
    measure.main([str(run)])
    found = json.loads((run / "eval.json").read_text())
    assert found["step"] == step and "prior_acceptance" in found
    assert "frechet" not in found and reason in json.dumps(found["report"])
    assert (run / "samples" / f"ebm_{step:07d}.png").is_file()

    def again(command):
        raise AssertionError(command)

    monkeypatch.setattr(subprocess, "call", again)
    outcome.draw_and_measure(run)  # it is measured


def test_a_run_without_a_checkpoint_is_told(tmp_path):
    with pytest.raises(ConfigError, match="has no checkpoint yet: give it more --min"):
        outcome.draw_and_measure(tmp_path)


def test_data_that_are_not_there_end_in_one_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tools.headline", "--data=cifar", "--workdir=w"],
        cwd=ROOT, text=True, capture_output=True,
    )  # fmt: skip
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: --data must be one of")
    assert done.stderr.endswith("got 'cifar'; did you mean 'cifar10'?\n")
