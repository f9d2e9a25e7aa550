import dataclasses
import doctest
import json
import shutil
import typing

import jax
import numpy as np
import pytest

from experiments.errors import ConfigError
from experiments.evaluation import evaluate, likelihood, log_likelihood
from experiments.evaluation.likelihood import Likelihood, warnings_of
from experiments.evaluation.registry import create
from experiments.rundir import report
from tests.experiments.evaluation.saved import experiment_of, of_run, save_run
from tests.jebm.test_partition import LOG_Z, well_model, well_samples
from tests.jebm.test_scores import (
    NOISE,
    PIXEL,
    TILT,
    exact_posterior,
    linear_model,
    precision,
)

KEY = jax.random.key(5)
IMAGES = np.random.default_rng(0).integers(0, 256, (40, 1, 1, 1)).astype(np.uint8)
ESTIMATORS = typing.get_args(typing.get_type_hints(Likelihood)["estimator"])


def measure(key, model, params, images, **changes):
    """The numbers of 30 of the images, by some samples of each."""
    fields = {
        "estimator": "importance",
        "num_images": 30,
        "num_samples": 100,
        "num_temperatures": 60,
        "batch_size": 20,
    }
    return Likelihood(**fields | changes).measure(key, model, params, images)


def loosened(tilt):
    """A proposal near the posterior, so that weights vary; one of a finite mean."""
    q = exact_posterior(tilt)
    return type(q)(q.top, 1.3 * q.top_scale, q.low, q.pull, 1.2 * q.low_scale)


@pytest.mark.slow
@pytest.mark.parametrize("with_energy", [False, True])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_log_likelihood_of_a_linear_hierarchy_is_exact_within_its_error(
    estimator, with_energy, x64
):
    tilt = TILT if with_energy else np.zeros(2)
    model, params = linear_model(loosened(tilt), tilted=with_energy)
    numbers = measure(KEY, model, params, IMAGES, estimator=estimator)
    noise = jax.random.split(KEY, 3)[0]
    x = np.asarray(log_likelihood.dequantise(noise, IMAGES[:30]), np.float64).ravel()
    variance = PIXEL @ np.linalg.inv(precision(tilt)) @ PIXEL + NOISE**2
    expected = -0.5 * (x**2 / variance + np.log(2 * np.pi * variance))
    error = numbers["log_likelihood_error"]
    assert 0 < error < 0.05
    assert abs(numbers["log_likelihood_nats"] - expected.mean()) < 4 * error
    assert numbers["log_likelihood_spread"] == pytest.approx(
        expected.std(ddof=1), rel=0.2
    )
    assert numbers["bits_per_dim"] == pytest.approx(
        8 - numbers["log_likelihood_nats"] / np.log(2)
    )
    assert 1 < numbers["effective_samples"] < 100
    assert ("log_z_nats" in numbers) == with_energy
    assert ("log_likelihood_nats_untilted" in numbers) == with_energy
    if with_energy:
        untilted = np.linalg.det(precision(np.zeros(2)))
        log_z = 0.5 * np.log(untilted / np.linalg.det(precision(tilt)))
        for name in ("log_z", "log_z_reverse"):
            error = numbers[f"{name}_error"]
            assert abs(numbers[f"{name}_nats"] - log_z) < 4 * error + 1e-9
            assert 300 < numbers[f"{name}_effective_samples"] <= 500
        assert (
            numbers["log_z_gap_nats"]
            == numbers["log_z_reverse_nats"] - (numbers["log_z_nats"])
        )
        assert (numbers["log_z_agrees"], numbers["log_z_unseen_share"]) == (True, 0)
    assert warnings_of(numbers) == ()
    if estimator == "importance":
        assert 0 <= numbers["heavy_tailed_share"] <= 0.05  # of 100 weights, k is ~ 0
    else:
        assert "heavy_tailed_share" not in numbers
    if with_energy:
        model, params = linear_model(loosened(tilt), tilted=False)
        gaussian = measure(KEY, model, params, IMAGES, estimator=estimator)
        for name, value in gaussian.items():
            assert numbers[f"{name}_untilted"] == pytest.approx(value, rel=1e-6)


@pytest.mark.slow
def test_a_mode_that_annealing_misses_is_told(monkeypatch, x64):
    """By a chain that has been there, with the most tellingly small of errors."""
    samples = well_samples(498, 2)
    monkeypatch.setattr(log_likelihood, "_of_prior_chain", lambda *_: samples)
    numbers = measure(KEY, *well_model(), IMAGES, estimator="bridged", num_samples=4)
    assert abs(numbers["log_z_nats"] - LOG_Z) > 5
    assert numbers["log_z_error"] < 0.01
    assert abs(numbers["log_z_gap_nats"] - LOG_Z) < 2
    assert numbers["log_z_agrees"] is False
    (text,) = warnings_of(numbers)
    assert text.startswith("Do not trust log Z and its error: ")
    assert f"{numbers['log_z_reverse_nats']:.4g} nats" in text


@pytest.mark.slow
def test_weights_with_heavy_tails_are_told():
    """Of an encoder whose q is half as wide as the posterior: k is 3/4 in each."""
    q = exact_posterior(TILT)
    narrow = type(q)(q.top, 0.5 * q.top_scale, q.low, q.pull, 0.5 * q.low_scale)
    model, params = linear_model(narrow, tilted=False)
    numbers = measure(KEY, model, params, IMAGES, num_samples=1000)
    assert numbers["heavy_tailed_share"] > 0.3
    (text,) = warnings_of(numbers)
    share = f"{numbers['heavy_tailed_share']:.0%}"
    assert f"the weights of {share} of the images have a Pareto k above .7" in text
    # A tail of less than five.
    fewer = measure(KEY, model, params, IMAGES, num_samples=24)
    assert "heavy_tailed_share" not in fewer


def test_dequantised_values_fill_their_bins_evenly():
    values = np.repeat(np.arange(256, dtype=np.uint8), 400).reshape(-1, 1, 1, 1)
    x = np.asarray(log_likelihood.dequantise(KEY, values), np.float64)
    assert np.all((x >= 0) & (x <= 1))
    within = 256 * x - values
    assert np.all((within >= 0) & (within <= 1))
    # Of a uniform law; the mean of n draws deviates by (12 n)^-1/2.
    assert abs(within.mean() - 0.5) < 4 / np.sqrt(12 * values.size)
    assert abs(within.var() - 1 / 12) < 4 / np.sqrt(180 * values.size)


def test_every_model_sees_the_same_noise_and_each_run_of_a_key_the_same_number():
    model, params = linear_model(loosened(TILT), tilted=False)
    first, again = (measure(KEY, model, params, IMAGES) for _ in range(2))
    assert first == again
    other = measure(jax.random.key(6), model, params, IMAGES)
    assert other["log_likelihood_nats"] != first["log_likelihood_nats"]


SMALL = {
    "learning.method": "variational",
    "backbone.encoder_widths": (8,),
    "chains.posterior.start": "encoder",
    "chains.posterior.num_steps": 0,
    "eval.protocol": "likelihood",
    "eval.likelihood.num_images": 30,
    "eval.likelihood.num_samples": 20,
}


@pytest.fixture(scope="module")
def variational_run(tmp_path_factory):
    path = save_run(tmp_path_factory.mktemp("likelihood") / "run", **SMALL)
    evaluate.evaluate(of_run(path), path)
    return path


@pytest.mark.slow
def test_another_protocol_has_a_file_of_its_own(variational_run, tmp_path):
    path = shutil.copytree(variational_run, tmp_path / "run")
    own = (path / "eval.json").read_bytes()
    evaluate.evaluate(of_run(path, **{"eval.protocol": "classifier"}), path)
    assert (path / "eval.json").read_bytes() == own
    values = json.loads((path / "eval_classifier.json").read_text())
    assert values["protocol"] == "classifier"
    page = (path / "report.html").read_text()
    assert "Frechet distance to 360" in page
    assert "Log-likelihood of 30" in page


@pytest.mark.slow
def test_eval_json_and_the_report_tell_nats_bits_and_errors(variational_run, tmp_path):
    path = shutil.copytree(variational_run, tmp_path / "run")
    numbers = json.loads((path / "eval.json").read_text())
    assert (numbers["protocol"], numbers["estimator"]) == ("likelihood", "importance")
    assert (numbers["num_images"], numbers["samples_per_image"]) == (30, 20)
    assert numbers["bits_per_dim"] == pytest.approx(
        8 - numbers["log_likelihood_nats"] / (64 * np.log(2))
    )
    assert abs(numbers["log_z_nats"]) < 1  # the energies have hardly moved from 0
    assert "prior_stiffness" in numbers
    report.write(path)
    page = (path / "report.html").read_text()
    assert "Log-likelihood of 30 dequantised held-out images" in page
    for name in ("bits_per_dim", "log_z_nats", "log_z_gap_nats", "effective_samples"):
        assert f"<td>{numbers[name]:.4g}</td>" in page


def test_warnings_are_on_the_page_and_beside_the_numbers(
    variational_run, tmp_path, capsys, monkeypatch
):
    path = shutil.copytree(variational_run, tmp_path / "run")
    numbers = json.loads((path / "eval.json").read_text())
    assert numbers["log_z_agrees"] is True
    report.write(path)
    assert "Do not trust" not in (path / "report.html").read_text()

    doubted = {"log_z_agrees": False, "heavy_tailed_share": 0.25}
    names = ("log_z_nats", "log_z_reverse_nats", "log_z_unseen_share")
    doubtful = {name: numbers[name] for name in names} | doubted
    monkeypatch.setattr(Likelihood, "measure", lambda *_: doubtful)
    evaluate.evaluate(of_run(path), path)
    printed = capsys.readouterr().out
    assert printed.count("warning: Do not trust log Z and its error") == 1
    assert printed.count("warning: Do not trust the error of log p(x)") == 1
    assert json.loads((path / "eval.json").read_text())["log_z_agrees"] is False
    page = (path / "report.html").read_text()
    assert '<p class="warning">Do not trust log Z and its error' in page
    assert "25% of the images have a Pareto k above .7" in page
    assert "<td>the two agree</td><td>no</td>" in page


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eval.likelihood.estimator": "exact"}, "'exact'; known: .*'annealed'"),
        ({"eval.likelihood.num_samples": 1}, "num_samples must be at least 2, got 1"),
        ({"eval.likelihood.num_images": 0}, "num_images must be at least 2, got 0"),
        ({"eval.likelihood.batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"chains.posterior.num_steps": 3}, "an encoder alone; .* to 'annealed'"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(changes, words):
    with pytest.raises(ConfigError, match=words):
        create(experiment_of(**SMALL | changes))


def test_density_of_grey_images_by_bernoulli_is_refused():
    experiment = experiment_of(**SMALL)
    bernoulli = dataclasses.replace(experiment, likelihood={"name": "bernoulli"})
    with pytest.raises(
        ConfigError, match=r"'bernoulli'.* needs config\.data\.binarize"
    ):
        create(bernoulli)
    binarized = dataclasses.replace(bernoulli.data, binarize=True)
    create(dataclasses.replace(bernoulli, data=binarized))


@pytest.mark.slow
@pytest.mark.parametrize("module", [likelihood, log_likelihood])
def test_examples_of_the_docstrings(module):
    assert doctest.testmod(module).failed == 0
