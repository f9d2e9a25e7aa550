import dataclasses
import doctest
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import jebm
from experiments import models, options
from experiments.configs import test
from experiments.data import datasets
from experiments.errors import ConfigError
from experiments.evaluation.anomaly_score import Weights, detection
from experiments.models import build_model
from experiments.runs import Run
from experiments.streams import Stream
from experiments.sweeps import anomaly, vmapped
from experiments.sweeps.vmapped import VmappedRun, of_run, train_vmapped
from tests.experiments.runs import ROOT
from tests.experiments.training.test_train import variational_config
from tests.experiments.training.test_two_stage import two_stage_config


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Two digits, two seeds each, and where they are."""
    path = tmp_path_factory.mktemp("anomaly")
    results = {d: anomaly.run(heldout(d), path / str(d), seeds=2) for d in (4, 7)}
    return path, results


def small():
    config = test.get_config()
    config.learning.energy_lr = 0.1  # so that the energies matter after eight steps
    config.eval.num_posterior_samples = 1
    config.eval.anomaly.likelihood_weight = 0.3
    config.eval.anomaly.num_augmentations = 1
    config.eval.anomaly.num_neighbours = 2
    config.eval.anomaly.neighbours_weight = 0.5
    config.eval.anomaly.knn_volume_weight = 0.1
    return config


def heldout(digit, config=None):
    """The experiment of a config, by default the small one, without a digit."""
    return anomaly.heldout((config or small()).to_dict(), digit)


@pytest.mark.slow
def test_every_seed_of_a_digit_has_its_areas(found):
    path, results = found
    for digit, rows in results.items():
        assert json.loads((path / str(digit) / "anomaly.json").read_text()) == rows
        assert [(r["digit"], r["seed"]) for r in rows] == [(digit, 0), (digit, 1)]
        split = datasets.load(heldout(digit).data)["test"]
        for row in rows:
            assert row["prevalence"] == (split.labels == digit).mean()
            assert row["diverged"] is None
            assert row["scored"]["num_neighbours"] == 2
        assert rows[0]["auroc"] != rows[1]["auroc"]


@pytest.mark.slow
def test_areas_are_those_of_the_averaged_parameters(found):
    path, results = found
    experiment = heldout(4)
    model = build_model(experiment, (8, 8, 1))
    splits = datasets.load(experiment.data)
    runs = [VmappedRun(splits["train"].images, seed, {}) for seed in (0, 1)]
    state, _ = train_vmapped(experiment, path / "4", model, runs, [0, 1], splits)
    params, own = of_run(state.learner.ema, 1), dataclasses.replace(experiment, seed=1)
    run = Run(path / "4", own, model, params, 8, splits)
    evaluator = anomaly.evaluator_of(experiment)
    terms = evaluator.terms(run.key(Stream.EVALUATION), run)
    assert evaluator.weights == Weights(0.3, 0.5, 0.1)
    anomalous = splits["test"].labels == 4
    expected = detection(terms, anomalous, evaluator.weights)
    for name, value in expected.items():
        assert results[4][1][name] == pytest.approx(value, abs=1e-6)


@pytest.mark.slow
def test_gaussian_row_is_the_score_without_the_energy(tmp_path):
    config = small()  # a posterior chain would feel the energy, an encoder does not
    config.backbone.encoder_widths = (8,)
    config.learning.method = "variational"
    config.chains.posterior.start, config.chains.posterior.num_steps = "encoder", 0
    experiment = heldout(4, config)
    model = build_model(experiment, (8, 8, 1))
    plain = jebm.init(jax.random.key(0), model)  # energies start at 0
    tilted = plain._replace(
        energy=jax.tree.map(lambda e: jnp.full_like(e, 3), plain.energy)
    )
    splits = datasets.load(experiment.data)
    with_energy, without = (
        anomaly.areas(Run(tmp_path, experiment, model, params, 8, splits))
        for params in (tilted, plain)
    )
    for measure in ("auprc", "auroc"):
        gaussian = with_energy[f"{measure}_gaussian"]
        assert gaussian == pytest.approx(without[measure], abs=1e-6)
        assert with_energy[measure] != pytest.approx(gaussian, abs=1e-3)


def test_a_second_call_trains_no_further(found, monkeypatch):
    path, results = found

    def step_of(*arguments):
        pytest.fail("trains again")

    monkeypatch.setattr(vmapped.learner, "make_train_step", step_of)
    again = anomaly.run(heldout(4), path / "4", seeds=2)
    assert [r["auprc"] for r in again] == [r["auprc"] for r in results[4]]


@pytest.mark.slow
def test_every_seed_of_two_stages_keeps_its_own_generator(tmp_path, monkeypatch):
    states = {}

    def noted(experiment, path, *rest):
        states[path.name], history = train_vmapped(experiment, path, *rest)
        return states[path.name], history

    monkeypatch.setattr(anomaly, "train_vmapped", noted)
    first = options.read(variational_config("gaussian"))
    for module in (models, anomaly):
        monkeypatch.setattr(module, "stage_one", lambda experiment: first)
    config = two_stage_config()
    config.learning.energy_lr = 0.1
    config.eval.num_posterior_samples = 1
    results = anomaly.run(heldout(4, config), tmp_path / "4", seeds=2)
    assert results[0]["auprc"] != results[0]["auprc_gaussian"]
    generators, tilted = (
        states["backbone"].learner.ema.backbone,
        states["4"].learner.ema.backbone,
    )
    jax.tree.map(np.testing.assert_array_equal, generators, tilted)
    kernels = [k for k in jax.tree.leaves(generators) if k.ndim == 3]
    assert kernels and all((k[0] != k[1]).any() for k in kernels)


def test_a_checkpoint_for_every_seed_is_refused(tmp_path):
    config = two_stage_config()
    config.backbone.checkpoint = str(tmp_path)
    with pytest.raises(ConfigError, match=r"backbone\.checkpoint must be None"):
        anomaly.check(heldout(4, config))


def test_other_seeds_are_refused_where_there_are_some(found):
    path, _ = found
    with pytest.raises(ConfigError, match="holds other runs"):
        anomaly.run(heldout(4), path / "4", seeds=3)


def test_table_tells_mean_and_deviation_over_seeds():
    def result(value):
        fields = {
            f"{m}{s}": value for m in ("auprc", "auroc") for s in anomaly._ROWS.values()
        }
        return fields | {"prevalence": 0.25, "scored": {"num_augmentations": 3}}

    lines = anomaly.table({1: [result(0.5), result(0.7)], 4: [result(0.9)]})
    assert lines[0] == "| | 1 | 4 |"
    assert lines[2] == "| score, AUPRC | 0.600 ± 0.100 | 0.900 ± 0.000 |"
    assert lines[-3] == "| prevalence | 0.250 | 0.250 |"
    assert lines[-1] == "Scored with eval.anomaly: num_augmentations=3."
    without = {k: v for k, v in result(0.5).items() if "distance" not in k}
    assert len(anomaly.table({1: [without]})) == len(lines) - 2


def test_bars_are_the_means_of_the_table(found, tmp_path, monkeypatch):
    _, results = found
    figures = []
    monkeypatch.setattr(anomaly.plt, "close", figures.append)
    anomaly.draw(results, tmp_path / "anomaly.png")
    image = np.asarray(Image.open(tmp_path / "anomaly.png"))
    assert image.shape[0] > 400 and image.std() > 10
    (axis,) = figures[0].axes
    heights = [bar.get_height() for bar in axis.patches]
    expected = [
        np.mean([row[f"auprc{suffix}"] for row in results[digit]])
        for suffix in ("", "_prior", "_distance", "_gaussian")
        for digit in (4, 7)
    ]
    np.testing.assert_allclose(heights, expected)
    assert [t.get_text() for t in axis.get_xticklabels()] == ["4", "7"]


def test_digits_are_read_or_refused():
    assert anomaly.parse_digits("1,9") == [1, 9]
    with pytest.raises(ConfigError, match="not a list of integers"):
        anomaly.parse_digits("1,x")
    with pytest.raises(ConfigError, match="names a digit twice"):
        anomaly.parse_digits("1,1")


def test_examples_of_the_docstrings():
    assert doctest.testmod(anomaly).failed == 0


def test_too_many_neighbours_are_refused():
    config = small()
    config.eval.anomaly.num_neighbours = 100_000
    with pytest.raises(ConfigError, match=r"num_neighbours of 100000 is more than"):
        anomaly.check(heldout(4, config))


def test_a_class_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"data\.heldout_class must be one of"):
        anomaly.check(heldout(10))


def test_the_program_refuses_a_digit_before_it_trains_another(tmp_path):
    flags = (
        "--config=experiments/configs/test.py",
        f"--workdir={tmp_path / 'runs'}",
        "--digits=4,10",
    )
    process = subprocess.run(
        [sys.executable, "-m", "experiments.sweeps.anomaly", *flags],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert process.returncode == 1
    (line,) = process.stderr.splitlines()
    assert line.startswith("error: data.heldout_class must be one of several classes")
    assert list(tmp_path.iterdir()) == []
