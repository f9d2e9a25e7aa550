import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

import jebm
from experiments import anomaly, datasets, evaluate, report
from experiments.command_line import ConfigError
from jebm.objectives import Positive
from tests.experiments.runs import run

HELDOUT = 4


@pytest.fixture(scope="module")
def detecting(tmp_path_factory):
    """The directory of a run that has not seen the fours."""
    from experiments.configs import test

    config, path = test.get_config(), tmp_path_factory.mktemp("anomaly") / "run"
    config.data.heldout_digit = HELDOUT
    config.eval.protocol = "anomaly"
    config.eval.num_posterior_samples = 2
    run(config, path)
    evaluate.evaluate(config, path)
    return path


def terms(*four):
    """Of log p(x|z), log p_beta(z), E(z) and log q(z|x)."""
    return Positive(*(np.asarray(a, float) for a in four))


def test_areas_are_those_of_a_ranking_counted_by_hand():
    # Scores 3 1 4 2, anomalies are the second and the third of these.
    found = anomaly.detection(
        terms([-1, 0, -2, -1], [-2, -1, -1, 0], [0, 0, 1, 1], [1, 3, 2, 0]),
        np.array([False, True, True, False]),
        anomaly.Weights(),
    )
    # Ranked 4 3 2 1 as + - - +: of four pairs the first + wins two, the last none.
    assert found["auroc"] == 0.5
    # Precision 1 at recall 1/2; then 1/2, 1/3 there, and 1/2 at recall 1.
    assert found["auprc"] == pytest.approx(0.5 * 1 + 0.5 * (1 / 3 + 1 / 2) / 2)
    assert found["prevalence"] == 0.5
    assert found["auroc_likelihood"] == 0.5  # 1 0 2 1: wins 2 against 1 and 1
    assert found["auroc_prior"] == 0.5  # 2 1 2 1: of four pairs one won, two tied
    assert found["auroc_posterior"] == 1.0
    assert found["auroc_unweighed"] == found["auroc"]


def test_what_is_the_same_for_all_images_has_the_areas_of_chance():
    anomalous = np.array([False, True, False, False])
    found = anomaly.detection(
        terms([3, 1, 4, 2], [0, 1, 2, 3], np.zeros(4), np.zeros(4)),
        anomalous,
        anomaly.Weights(),
    )
    for part in ("energy", "posterior"):
        assert (found[f"auprc_{part}"], found[f"auroc_{part}"]) == (0.25, 0.5)


def test_weights_choose_between_the_terms():
    rng = np.random.default_rng(0)
    random = terms(*rng.normal(size=(4, 200)))
    anomalous = rng.random(200) < 0.3

    def found(*weights):
        return anomaly.detection(random, anomalous, anomaly.Weights(*weights))

    assert found(0.0, 1.0)["auroc"] == found(1.0, 1.0)["auroc_prior"]
    assert found(0.0, 0.0)["auroc"] == found(1.0, 1.0)["auroc_energy"]
    assert found(1e6, 1.0)["auroc"] == found(1.0, 1.0)["auroc_likelihood"]
    assert found(1.0, 1.0, 1e9)["auroc"] == found(1.0, 1.0)["auroc_posterior"]
    assert found(0.5, 1.0)["auroc"] != found(0.5, 1.0)["auroc_unweighed"]
    np.testing.assert_allclose(
        anomaly.weighed(random, anomaly.Weights(0.5, 0.25, 2.0)),
        random.energy
        - 0.25 * random.log_prior
        - 0.5 * random.log_likelihood
        + 2.0 * random.log_q,
    )


@pytest.mark.parametrize("term", ["likelihood", "prior", "posterior"])
def test_negative_weight_is_refused(test_config, tmp_path, term):
    name = f"anomaly_{term}_weight"
    test_config.eval[name] = -0.1
    with pytest.raises(ConfigError, match=f"{name} must be at least"):
        run(test_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_posterior_that_the_model_does_not_have_is_refused(test_config, tmp_path):
    test_config.eval.anomaly_posterior_weight = 0.3
    with pytest.raises(ConfigError, match=r"log q.* of an encoder without a chain"):
        run(test_config, tmp_path / "run")
    test_config.eval.anomaly_posterior_weight = 0.0
    test_config.eval.anomaly_posterior_start = "nowhere"
    with pytest.raises(ConfigError, match="anomaly_posterior_start 'nowhere'; known"):
        run(test_config, tmp_path / "run")
    test_config.eval.anomaly_posterior_start = "mode"
    with pytest.raises(ConfigError, match="'mode' needs an encoder that learns"):
        run(test_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_posterior_of_the_scores_starts_where_it_is_told():
    posterior = jebm.Chain(num_steps=0, start="encoder")
    backbone, chains = {"encoder_widths": (8,)}, jebm.Chains(posterior=posterior)
    model = jebm.build({"image_shape": (8, 8, 1), "backbone": backbone})
    model = dataclasses.replace(model, chains=chains)
    params = jebm.init(jax.random.key(0), model)
    images = datasets.load("digits")["test"].images[:6]
    options = types.SimpleNamespace(
        anomaly_posterior_start=None, num_posterior_samples=1, batch_size=6
    )

    def found(start, seed):
        options.anomaly_posterior_start = start
        key = jax.random.key(seed)
        return anomaly.terms_of(key, model, params, images, options)

    drawn = [found(None, 0), found(None, 1), found("encoder", 0)]
    assert (drawn[0].log_prior != drawn[1].log_prior).any()
    np.testing.assert_array_equal(drawn[0].log_prior, drawn[2].log_prior)
    modes = [found("mode", seed) for seed in (0, 1)]
    np.testing.assert_allclose(modes[0].log_prior, modes[1].log_prior, rtol=1e-6)
    assert (modes[0].log_q > drawn[0].log_q).all()


def test_eval_json_tells_how_well_the_held_out_class_is_found(detecting):
    path = detecting
    found = json.loads((path / "eval.json").read_text())
    split = datasets.load("digits", heldout_digit=HELDOUT)["test"]
    anomalous = split.labels == HELDOUT
    assert found["num_anomalous"] == anomalous.sum() == 181
    assert found["num_normal"] == (~anomalous).sum()
    assert found["prevalence"] == anomalous.mean()
    assert found["protocol"] == "anomaly"
    assert (found["heldout_digit"], found["num_posterior_samples"]) == (HELDOUT, 2)
    # Other draws of the same scores rank nearly alike.
    model, params = jebm.load(path)
    x = datasets.to_unit(jnp.asarray(split.images))
    score = -jebm.scores.score(jax.random.key(7), model, params, x, num_samples=2)
    auroc = metrics.roc_auc_score(anomalous, score)
    assert found["auroc"] == pytest.approx(auroc, abs=0.03)
    assert "frechet" not in found
    assert "prior_stiffness" in found


def test_report_shows_the_areas_and_the_histogram(detecting):
    path = detecting
    found = json.loads((path / "eval.json").read_text())
    report.write(path)
    page = (path / "report.html").read_text()
    assert f"{found['num_anomalous']} images of the held-out class {HELDOUT}" in page
    for name in ("auprc", "auroc", "auprc_prior", "auroc_energy"):
        assert f"<td>{found[name]:.4g}</td>" in page
    assert (path / "figures" / "anomaly.png").stat().st_size > 5000
    assert "Scores of held-out images" in page


def test_protocol_without_a_held_out_class_is_refused(test_config, tmp_path):
    test_config.eval.protocol = "anomaly"
    with pytest.raises(ConfigError, match=r"needs a data\.heldout_digit"):
        run(test_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
