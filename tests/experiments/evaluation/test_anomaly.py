import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

import jebm
from experiments.configs import default
from experiments.data import datasets
from experiments.data.pixels import to_unit
from experiments.errors import ConfigError
from experiments.evaluation import anomaly, evaluate
from experiments.rundir import report
from jebm.chains import to_eps
from jebm.objectives import PosteriorTerms
from tests.experiments.runs import run

HELDOUT = 4


@pytest.fixture(scope="module")
def detecting(tmp_path_factory):
    """The directory of a run that has not seen the fours."""
    from experiments.configs import test

    config, path = test.get_config(), tmp_path_factory.mktemp("anomaly") / "run"
    config.data.heldout_class = HELDOUT
    config.eval.protocol = "anomaly"
    config.eval.num_posterior_samples = 2
    run(config, path)
    evaluate.evaluate(config, path)
    return path


def terms(*three, nearest=None):
    """Of log p(x|z), log p_beta(z) and E(z), [N] or [maps, N], and of neighbours."""

    def positive(three):
        three = np.asarray(three, float)
        return PosteriorTerms(*three, np.zeros_like(three[0]))

    moved = np.asarray(three, float).reshape(3, -1, np.shape(three[0])[-1])
    if nearest is None:
        nearest = np.empty((3, moved.shape[-1], 0))
    return anomaly.Terms(positive(moved), positive(nearest), np.asarray(nearest)[0])


def test_areas_are_those_of_a_ranking_counted_by_hand():
    # Scores 3 1 4 2, anomalies are the second and the third of these.
    found = anomaly.detection(
        terms([-1, 0, -2, -1], [-2, -1, -1, 0], [0, 0, 1, 1]),
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
    assert found["auroc_energy"] == 0.5  # 0 0 1 1: of four pairs one won, two tied
    assert found["auroc_unweighed"] == found["auroc_absolute"] == found["auroc"]


def test_what_is_the_same_for_all_images_has_the_areas_of_chance():
    anomalous = np.array([False, True, False, False])
    found = anomaly.detection(
        terms([3, 1, 4, 2], [0, 1, 2, 3], np.zeros(4)), anomalous, anomaly.Weights()
    )
    assert (found["auprc_energy"], found["auroc_energy"]) == (0.25, 0.5)
    assert "auprc_distance" not in found  # there are no neighbours


def test_what_is_not_finite_has_no_areas(encoding, tmp_path):
    model, params, images = encoding
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), params)
    given, key = options(num_augmentations=1, num_neighbours=2), jax.random.key(0)
    found = anomaly.terms_of(key, model, params, images[:9], images[9:30], given)
    weights, anomalous = anomaly.Weights(1.0, 0.5, 0.5), np.arange(9) < 3
    areas = anomaly.detection(found, anomalous, weights)
    assert areas.pop("prevalence") == 3 / 9
    assert len(areas) == 14 and all(np.isnan(value) for value in areas.values())
    anomaly.histogram(found, anomalous, weights, tmp_path / "anomaly.png")
    assert (tmp_path / "anomaly.png").stat().st_size > 1000


def test_weights_choose_between_the_terms():
    rng = np.random.default_rng(0)
    nearest = rng.normal(size=(3, 200, 2))
    random = terms(*rng.normal(size=(3, 200)), nearest=nearest)
    anomalous = rng.random(200) < 0.3

    def found(*weights):
        return anomaly.detection(random, anomalous, anomaly.Weights(*weights))

    plain = found(1.0, 0.0)
    assert found(0.0, 0.0)["auroc"] == plain["auroc_prior"] != plain["auroc"]
    assert found(1e6, 0.0)["auroc"] == plain["auroc_likelihood"]
    assert found(1.0, 0.0, 1e9)["auroc"] == plain["auroc_distance"]
    assert found(1.0, 1.0)["auroc"] != plain["auroc"] == plain["auroc_absolute"]
    areas = metrics.roc_auc_score(anomalous, nearest[0, :, 0])
    assert plain["auroc_distance"] == areas
    known = nearest.mean(2)
    likelihood, prior, energy, _ = random.moved[:4]
    np.testing.assert_allclose(
        anomaly.score(random, anomaly.Weights(0.5, 0.25, 2.0)),
        (0.5 * likelihood + prior - energy)[0]
        - 0.25 * (0.5 * known[0] + known[1] - known[2])
        - 2.0 * nearest[0, :, 0],
    )


def test_score_over_maps_is_the_log_of_the_mean_density():
    prior = np.random.default_rng(0).normal(size=(7, 20)) + 1000.0  # exp overflows
    zero = np.zeros_like(prior)
    found = anomaly.score(terms(zero, prior, zero), anomaly.Weights())
    expected = 1000.0 + np.log(np.exp(prior - 1000.0).mean(axis=0))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    again = anomaly.score(terms(zero, prior[::-1], zero), anomaly.Weights())
    np.testing.assert_allclose(again, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "name",
    [
        "likelihood_weight",
        "num_augmentations",
        "num_neighbours",
        "neighbours_weight",
        "knn_volume_weight",
    ],
)
def test_negative_weights_and_numbers_are_refused(test_config, tmp_path, name):
    test_config.eval.anomaly[name] *= 0
    test_config.eval.anomaly[name] -= 1
    with pytest.raises(ConfigError, match=f"{name} must be at least 0, got -1"):
        run(test_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["neighbours_weight", "knn_volume_weight"])
def test_weights_of_no_neighbours_are_refused(test_config, tmp_path, name):
    test_config.eval.anomaly[name] = 0.5
    with pytest.raises(ConfigError, match=r"0\.5.*with num_neighbours=0"):
        run(test_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_posterior_that_the_model_does_not_have_is_refused(test_config, tmp_path):
    test_config.eval.anomaly.posterior_start = "nowhere"
    with pytest.raises(ConfigError, match=r"posterior_start 'nowhere'; known"):
        run(test_config, tmp_path / "run")
    test_config.eval.anomaly.posterior_start = "mode"
    with pytest.raises(ConfigError, match="'mode' needs an encoder that learns"):
        run(test_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def encoding():
    """A model with an encoder, its parameters, and images."""
    posterior = jebm.Langevin(num_steps=0, start="encoder")
    backbone, chains = {"encoder_widths": (8,)}, jebm.Chains(posterior=posterior)
    model = jebm.build({"image_shape": (8, 8, 1), "backbone": backbone})
    model = dataclasses.replace(model, chains=chains)
    params = jebm.init(jax.random.key(0), model)
    return model, params, datasets.load("digits")["test"].images


def options(**changes):
    defaults = default.get_config().eval
    defaults.batch_size, defaults.num_posterior_samples = 6, 1
    defaults.anomaly.update(changes)
    return defaults


def test_posterior_of_the_scores_starts_where_it_is_told(encoding):
    model, params, images = encoding

    def found(start, seed):
        key = jax.random.key(seed)
        given = options(posterior_start=start)
        return anomaly.terms_of(key, model, params, images[:6], (), given).moved

    drawn = [found(None, 0), found(None, 1), found("encoder", 0)]
    assert (drawn[0].log_prior != drawn[1].log_prior).any()
    np.testing.assert_array_equal(drawn[0].log_prior, drawn[2].log_prior)
    modes = [found("mode", seed) for seed in (0, 1)]
    np.testing.assert_allclose(modes[0].log_prior, modes[1].log_prior, rtol=1e-6)


def test_terms_are_of_the_image_and_of_its_maps(encoding):
    model, params, images = encoding
    images = images[:8]  # more than a batch
    given = options(posterior_start="mode", num_augmentations=3)
    terms = anomaly.terms_of(jax.random.key(0), model, params, images, (), given)
    mode = dataclasses.replace(model.chains.posterior, start="mode")
    model = dataclasses.replace(model, chains=jebm.Chains(posterior=mode))
    x = to_unit(jnp.asarray(images))
    plain = jebm.scores.score_terms(jax.random.key(1), model, params, x)
    rows = terms.moved.log_likelihood
    assert rows.shape == (4, 8)
    np.testing.assert_allclose(rows[0], plain.log_likelihood, rtol=1e-5)
    apart = np.abs(rows[:, None] - rows[None]).min(axis=-1)
    assert (apart[~np.eye(4, dtype=bool)] > 0).all()  # every map is another
    assert terms.nearest.energy.shape == (8, 0)


def test_neighbours_of_images_of_training_are_these_themselves(encoding):
    model, params, images = encoding
    training, chosen = images[:40], [7, 3, 31]
    given = options(posterior_start="mode", num_neighbours=1)
    key = jax.random.key(0)
    terms = anomaly.terms_of(key, model, params, training[chosen], training, given)
    for nearest, own in zip(terms.nearest[:3], terms.moved[:3], strict=True):
        np.testing.assert_allclose(nearest[:, 0], own[0], rtol=1e-5)
    found = anomaly.score(terms, anomaly.Weights(0.5, 1.0))
    np.testing.assert_allclose(found, 0, atol=1e-3)
    assert np.isfinite(terms.knn_log_volume).all()


def test_neighbours_are_those_nearest_in_eps(encoding):
    model, params, images = encoding
    given = options(posterior_start="mode", num_neighbours=4)
    key, few, training = jax.random.key(0), images[:5], images[5:35]
    terms = anomaly.terms_of(key, model, params, few, training, given)
    noise = jax.random.key(9)  # the mode has none
    eps = [
        np.concatenate(to_eps(model, params, z), axis=1)
        for part in (few, training)
        for z in [
            jebm.posterior_sample(noise, model, params, to_unit(part), start="mode")
        ]
    ]
    apart = ((eps[0][:, None] - eps[1][None]) ** 2).sum(-1)
    order = apart.argsort(axis=1)[:, :4]
    distance = np.sqrt(np.take_along_axis(apart, order, axis=1))
    volume = distance ** eps[0].shape[1]
    np.testing.assert_allclose(np.exp(terms.knn_log_volume), volume, rtol=1e-3)
    all_terms = anomaly.terms_of(
        key, model, params, training, (), options(posterior_start="mode")
    )
    expected = all_terms.moved.log_prior[0][order]
    np.testing.assert_allclose(terms.nearest.log_prior, expected, rtol=1e-5)


def test_more_neighbours_than_images_are_refused(encoding):
    model, params, images = encoding
    given, key = options(num_neighbours=4), jax.random.key(0)
    with pytest.raises(ConfigError, match="of 4 is more than the 3 images of training"):
        anomaly.terms_of(key, model, params, images[:5], images[:3], given)


def test_eval_json_tells_how_well_the_held_out_class_is_found(detecting):
    path = detecting
    found = json.loads((path / "eval.json").read_text())
    split = datasets.load("digits", heldout_class=HELDOUT)["test"]
    anomalous = split.labels == HELDOUT
    assert found["num_anomalous"] == anomalous.sum() == 181
    assert found["num_normal"] == (~anomalous).sum()
    assert found["prevalence"] == anomalous.mean()
    assert found["protocol"] == "anomaly"
    assert (found["heldout_class"], found["num_posterior_samples"]) == (HELDOUT, 2)
    # Other draws of the same scores rank alike, up to three standard errors of an area
    # over so many pairs: sqrt((1/181 + 1/324) / 12) = .027.
    model, params = jebm.load(path)
    x = to_unit(jnp.asarray(split.images))
    score = -jebm.scores.score(jax.random.key(7), model, params, x, num_samples=2)
    auroc = metrics.roc_auc_score(anomalous, score)
    assert found["auroc"] == pytest.approx(auroc, abs=0.08)
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
    with pytest.raises(ConfigError, match=r"needs a data\.heldout_class"):
        run(test_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
