import dataclasses
import doctest
import json
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

import jebm
from experiments.data import datasets
from experiments.data.loaders import LOADERS, Options, Split
from experiments.data.pixels import to_unit
from experiments.errors import ConfigError
from experiments.evaluation import anomaly, anomaly_score, evaluate
from experiments.evaluation.anomaly import Anomaly
from experiments.evaluation.anomaly_score import (
    ImageTerms,
    Terms,
    Weights,
    detection,
    score,
)
from experiments.evaluation.registry import create
from experiments.rundir import report
from jebm.chains import to_eps
from jebm.kernels import STARTS
from tests.experiments.evaluation.saved import experiment_of, of_run, run_of, save_run

HELDOUT = 4
DETECTING = {"data.heldout_class": HELDOUT, "eval.protocol": "anomaly"}


@pytest.fixture(scope="module")
def detecting(tmp_path_factory):
    """The directory of a run that has not seen the fours, measured."""
    path = save_run(
        tmp_path_factory.mktemp("anomaly") / "run",
        **DETECTING,
        **{"eval.num_posterior_samples": 2},
    )
    evaluate.evaluate(of_run(path), path)
    return path


def terms(*three, nearest=None):
    """Of log p(x|z), log p_beta(z) and E(z), [N] or [maps, N], and of neighbours."""

    def positive(three):
        return ImageTerms(*np.asarray(three, float))

    moved = np.asarray(three, float).reshape(3, -1, np.shape(three[0])[-1])
    if nearest is None:
        nearest = np.empty((3, moved.shape[-1], 0))
    return Terms(positive(moved), positive(nearest), np.asarray(nearest)[0])


def test_areas_are_those_of_a_ranking_counted_by_hand():
    # Scores 3 1 4 2, anomalies are the second and the third of these.
    numbers = detection(
        terms([-1, 0, -2, -1], [-2, -1, -1, 0], [0, 0, 1, 1]),
        np.array([False, True, True, False]),
        Weights(),
    )
    # Ranked 4 3 2 1 as + - - +: of four pairs the first + wins two, the last none.
    assert numbers["auroc"] == 0.5
    # Precision 1 at recall 1/2; then 1/2, 1/3 there, and 1/2 at recall 1.
    assert numbers["auprc"] == pytest.approx(0.5 * 1 + 0.5 * (1 / 3 + 1 / 2) / 2)
    assert numbers["prevalence"] == 0.5
    assert numbers["auroc_likelihood"] == 0.5  # 1 0 2 1: wins 2 against 1 and 1
    assert numbers["auroc_prior"] == 0.5  # 2 1 2 1: of four pairs one won, two tied
    assert numbers["auroc_energy"] == 0.5  # 0 0 1 1: of four pairs one won, two tied
    assert numbers["auroc_unweighed"] == numbers["auroc_absolute"] == numbers["auroc"]


def test_what_is_the_same_for_all_images_has_the_areas_of_chance():
    anomalous = np.array([False, True, False, False])
    numbers = detection(
        terms([3, 1, 4, 2], [0, 1, 2, 3], np.ones(4)), anomalous, Weights()
    )
    assert (numbers["auprc_energy"], numbers["auroc_energy"]) == (0.25, 0.5)
    gaussian = terms([3, 1, 4, 2], [0, 1, 2, 3], np.zeros(4))
    assert "auprc_energy" not in detection(gaussian, anomalous, Weights())
    assert "auprc_distance" not in numbers  # there are no neighbours


@pytest.mark.slow
def test_what_is_not_finite_has_no_areas(encoding, tmp_path):
    model, params, images = encoding
    params = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), params)
    broken, changes = (model, params), {"num_augmentations": 1, "num_neighbours": 2}
    terms = terms_of(jax.random.key(0), broken, images[:9], images[9:30], **changes)
    weights, anomalous = Weights(1.0, 0.5, 0.5), np.arange(9) < 3
    areas = detection(terms, anomalous, weights)
    assert areas.pop("prevalence") == 3 / 9
    assert len(areas) == 14 and all(np.isnan(value) for value in areas.values())
    figure = anomaly.histograms(terms, anomalous, weights)
    figure.savefig(tmp_path / "anomaly.png")
    assert (tmp_path / "anomaly.png").stat().st_size > 1000


def test_weights_choose_between_the_terms():
    rng = np.random.default_rng(0)
    nearest = rng.normal(size=(3, 200, 2))
    random = terms(*rng.normal(size=(3, 200)), nearest=nearest)
    anomalous = rng.random(200) < 0.3

    def numbers_of(*weights):
        return detection(random, anomalous, Weights(*weights))

    plain = numbers_of(1.0, 0.0)
    assert numbers_of(0.0, 0.0)["auroc"] == plain["auroc_prior"] != plain["auroc"]
    assert numbers_of(1e6, 0.0)["auroc"] == plain["auroc_likelihood"]
    assert numbers_of(1.0, 0.0, 1e9)["auroc"] == plain["auroc_distance"]
    assert numbers_of(1.0, 1.0)["auroc"] != plain["auroc"] == plain["auroc_absolute"]
    areas = metrics.roc_auc_score(anomalous, nearest[0, :, 0])
    assert plain["auroc_distance"] == areas
    known = nearest.mean(2)
    likelihood, prior, energy = random.moved
    np.testing.assert_allclose(
        score(random, Weights(0.5, 0.25, 2.0)),
        (0.5 * likelihood + prior - energy)[0]
        - 0.25 * (0.5 * known[0] + known[1] - known[2])
        - 2.0 * nearest[0, :, 0],
    )


def test_score_over_maps_is_the_log_of_the_mean_density():
    prior = np.random.default_rng(0).normal(size=(7, 20)) + 1000.0  # exp overflows
    zero = np.zeros_like(prior)
    numbers = score(terms(zero, prior, zero), Weights())
    expected = 1000.0 + np.log(np.exp(prior - 1000.0).mean(axis=0))
    np.testing.assert_allclose(numbers, expected, rtol=1e-12)
    again = score(terms(zero, prior[::-1], zero), Weights())
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
def test_negative_weights_and_numbers_are_refused(name):
    section = experiment_of().eval.evaluators["anomaly"]
    negative = type(section[name])(-1)
    with pytest.raises(ConfigError, match=f"{name} must be at least 0, got -1"):
        create(experiment_of(**{f"eval.anomaly.{name}": negative}))


@pytest.mark.parametrize("name", ["neighbours_weight", "knn_volume_weight"])
def test_weights_of_no_neighbours_are_refused(name):
    with pytest.raises(ConfigError, match=r"0\.5.*with num_neighbours=0"):
        create(experiment_of(**{f"eval.anomaly.{name}": 0.5}))


def test_posterior_that_the_model_does_not_have_is_refused():
    start = "eval.anomaly.posterior_start"
    with pytest.raises(ConfigError, match=r"posterior_start 'nowhere'; known"):
        create(experiment_of(**{start: "nowhere"}))
    with pytest.raises(ConfigError, match="'mode' needs an encoder that learns"):
        create(experiment_of(**{start: "mode"}, **DETECTING))
    encoder = {
        "learning.method": "variational",
        "backbone.encoder_widths": (8,),
        "chains.posterior.start": "encoder",
    }
    create(experiment_of(**{start: "mode"}, **encoder, **DETECTING))


def test_posterior_may_start_wherever_the_library_has_it():
    hint, _ = typing.get_args(typing.get_type_hints(Anomaly)["posterior_start"])
    assert set(typing.get_args(hint)) == set(STARTS)


@pytest.fixture(scope="module")
def encoding():
    """A model with an encoder, its parameters, and images."""
    posterior = jebm.Langevin(num_steps=0, start="encoder")
    backbone, chains = {"encoder_widths": (8,)}, jebm.Chains(posterior=posterior)
    model = jebm.build({"image_shape": (8, 8, 1), "backbone": backbone})
    model = dataclasses.replace(model, chains=chains)
    params = jebm.init(jax.random.key(0), model)
    return model, params, LOADERS["digits"](Options())["test"].images


def terms_of(key, encoding, images, training=(), **changes):
    """Those of images given others of training, with changed options."""
    model, params, *_ = encoding
    splits = {
        name: Split(chosen, np.zeros(len(chosen), int))
        for name, chosen in (("test", images), ("train", training))
    }
    sizes = {"eval.batch_size": 6, "eval.num_posterior_samples": 1}
    run = run_of(model, params, splits, **sizes)
    evaluator = Anomaly.of(run.experiment.eval.evaluators["anomaly"] | changes)
    return evaluator.terms(key, run)


def test_posterior_of_the_scores_starts_where_it_is_told(encoding):
    def moved(start, seed):
        key, images = jax.random.key(seed), encoding[2][:6]
        return terms_of(key, encoding, images, posterior_start=start).moved

    drawn = [moved(None, 0), moved(None, 1), moved("encoder", 0)]
    assert (drawn[0].log_prior != drawn[1].log_prior).any()
    np.testing.assert_array_equal(drawn[0].log_prior, drawn[2].log_prior)
    modes = [moved("mode", seed) for seed in (0, 1)]
    np.testing.assert_allclose(modes[0].log_prior, modes[1].log_prior, rtol=1e-6)


def test_terms_are_of_the_image_and_of_its_maps(encoding):
    model, params, images = encoding
    images = images[:8]  # more than a batch
    changes = {"posterior_start": "mode", "num_augmentations": 3}
    terms = terms_of(jax.random.key(0), encoding, images, **changes)
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
    images = encoding[2]
    training, chosen = images[:40], [7, 3, 31]
    changes, key = {"posterior_start": "mode", "num_neighbours": 1}, jax.random.key(0)
    terms = terms_of(key, encoding, training[chosen], training, **changes)
    for nearest, own in zip(terms.nearest[:3], terms.moved[:3], strict=True):
        np.testing.assert_allclose(nearest[:, 0], own[0], rtol=1e-5)
    numbers = score(terms, Weights(0.5, 1.0))
    np.testing.assert_allclose(numbers, 0, atol=1e-3)
    assert np.isfinite(terms.knn_log_volume).all()


def test_neighbours_are_those_nearest_in_eps(encoding):
    model, params, images = encoding
    changes = {"posterior_start": "mode", "num_neighbours": 4}
    key, subset, training = jax.random.key(0), images[:5], images[5:35]
    terms = terms_of(key, encoding, subset, training, **changes)
    noise = jax.random.key(9)  # the mode has none
    eps = [
        np.concatenate(to_eps(model, params, z), axis=1)
        for part in (subset, training)
        for z in [
            jebm.posterior_sample(noise, model, params, to_unit(part), start="mode")
        ]
    ]
    apart = ((eps[0][:, None] - eps[1][None]) ** 2).sum(-1)
    order = apart.argsort(axis=1)[:, :4]
    distance = np.sqrt(np.take_along_axis(apart, order, axis=1))
    volume = distance ** eps[0].shape[1]
    np.testing.assert_allclose(np.exp(terms.knn_log_volume), volume, rtol=1e-3)
    all_terms = terms_of(key, encoding, training, posterior_start="mode")
    expected = all_terms.moved.log_prior[0][order]
    np.testing.assert_allclose(terms.nearest.log_prior, expected, rtol=1e-5)


def test_more_neighbours_than_images_are_refused(encoding):
    images, key = encoding[2], jax.random.key(0)
    with pytest.raises(ConfigError, match="of 4 is more than the 3 images of training"):
        terms_of(key, encoding, images[:5], images[:3], num_neighbours=4)


@pytest.mark.slow
def test_eval_json_tells_how_well_the_held_out_class_is_found(detecting):
    path = detecting
    numbers = json.loads((path / "eval.json").read_text())
    split = datasets.load(experiment_of(**DETECTING).data)["test"]
    anomalous = split.labels == HELDOUT
    assert numbers["num_anomalous"] == anomalous.sum() == 181
    assert numbers["num_normal"] == (~anomalous).sum()
    assert numbers["prevalence"] == anomalous.mean()
    assert numbers["protocol"] == "anomaly"
    assert (numbers["heldout_class"], numbers["num_posterior_samples"]) == (HELDOUT, 2)
    # Other draws of the same scores rank alike, up to three standard errors of an area
    # over so many pairs: sqrt((1/181 + 1/324) / 12) = .027.
    model, params = jebm.load(path)
    x = to_unit(jnp.asarray(split.images))
    score = -jebm.scores.score(jax.random.key(7), model, params, x, num_samples=2)
    auroc = metrics.roc_auc_score(anomalous, score)
    assert numbers["auroc"] == pytest.approx(auroc, abs=0.08)
    assert "frechet" not in numbers
    assert "prior_stiffness" in numbers


@pytest.mark.slow
def test_report_shows_the_areas_and_the_histogram(detecting):
    path = detecting
    numbers = json.loads((path / "eval.json").read_text())
    report.write(path)
    page = (path / "report.html").read_text()
    assert (
        f"{numbers['num_anomalous']} images of class {HELDOUT}, which training" in page
    )
    for name in ("auprc", "auroc", "auprc_prior", "auroc_energy"):
        assert f"<td>{numbers[name]:.4g}</td>" in page
    assert (path / "figures" / "anomaly.png").stat().st_size > 5000
    assert "Scores, and parts of them, of test images" in page


def test_protocol_without_a_held_out_class_is_refused():
    with pytest.raises(ConfigError, match=r"needs a data\.heldout_class"):
        create(experiment_of(**{"eval.protocol": "anomaly"}))


def test_examples_of_the_docstrings():
    assert doctest.testmod(anomaly_score).failed == 0
