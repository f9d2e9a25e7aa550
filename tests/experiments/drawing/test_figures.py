import doctest
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from experiments.drawing.chains import plateau
from experiments.drawing.common import spaced
from experiments.drawing.hierarchy import _cuts
from experiments.drawing.planes import _distances, _plane
from experiments.evaluation import probes
from tests.experiments.runs import CONFIG, contents, run_main

FIGURES = (
    "training",
    "posterior_transition",
    "transition",
    "long_run",
    "hierarchical",
    "by_layer",
    "latent_planes",
)


def test_mode_figures_draws_them_anew_and_nothing_else_but_the_report(
    trained_run, tmp_path, capsys
):
    path = shutil.copytree(trained_run, tmp_path / "run")
    shutil.rmtree(path / "figures")
    run_main(CONFIG, f"--workdir={path}", "--mode=figures")
    printed = capsys.readouterr().out
    before, after = contents(trained_run), contents(path)
    assert set(after) == set(before)
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"report.html"}
    for name in FIGURES:
        with Image.open(path / "figures" / f"{name}.png") as picture:
            picture.load()
            assert min(picture.size) > 300
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 50
        assert f"wrote {path / 'figures' / name}.png" in printed


def test_latent_planes_json_has_four_distances_per_layer(trained_run):
    layers = json.loads((trained_run / "figures" / "latent_planes.json").read_text())
    assert set(layers) == {"z_1", "z_2"}
    for values in layers.values():
        assert set(values) == {"tilted", "untilted", "posterior", "ratio"}
        assert all(value > 0 for value in values.values())
        assert values["ratio"] == pytest.approx(values["tilted"] / values["untilted"])


def test_long_run_json_compares_the_last_steps_with_those_before(trained_run):
    found = json.loads((trained_run / "figures" / "long_run.json").read_text())
    names = ("before_nats", "last_nats", "standard_error_nats", "difference_in_sd")
    assert set(found) == set(names)
    assert np.isfinite([found[name] for name in names]).all()
    assert found["standard_error_nats"] > 0


def test_plateau_of_stationary_noise_is_flat_and_a_slope_is_seen():
    noise = np.random.default_rng(0).normal(size=(100, 256))
    flat = plateau(noise, 50)
    difference = flat["last_nats"] - flat["before_nats"]
    # Of 2 x 50 x 256 independent numbers; four standard errors of a mean difference.
    assert abs(difference) < 4 * np.sqrt(2 / (50 * 256))
    assert flat["standard_error_nats"] == pytest.approx(
        np.sqrt(2 / (50 * 256)), rel=4 / np.sqrt(2 * 255)
    )
    rising = plateau(noise + np.arange(100)[:, None] / 50, 50)
    assert rising["last_nats"] - rising["before_nats"] == pytest.approx(1 + difference)


def test_distances_to_a_chain_that_has_diverged_are_nan():
    posterior, sound = np.random.default_rng(0).normal(size=(2, 40, 3))
    diverged = sound.copy()
    diverged[0, 0] = np.inf
    found = _distances(posterior, diverged, sound)
    assert np.isnan([found["tilted"], found["ratio"]]).all()
    assert found["untilted"] > 0 and found["posterior"] > 0


def test_hierarchical_json_has_agreement_of_both_priors(trained_run):
    found = json.loads((trained_run / "figures" / "hierarchical.json").read_text())
    assert set(found) == {"k=1"}
    for prior in ("ebm", "gaussian"):
        assert 0 <= found["k=1"][prior]["overall"] <= 1
        assert 0 <= found["k=1"][prior]["in_rows"] <= 1


def test_probes_json_has_each_layer_s_accuracy_beside_chance(trained_run):
    found = json.loads((trained_run / "figures" / "probes.json").read_text())
    assert set(found) == {"z_1", "z_2"}
    for values in found.values():
        assert 0.05 < values["chance"] < 0.15  # ten classes, nearly balanced
        assert 0 <= values["accuracy"] <= 1
    page = (trained_run / "report.html").read_text()
    assert "tells the label from one layer alone" in page


def test_probe_tells_classes_that_a_layer_separates_and_no_others():
    rng = np.random.default_rng(0)
    labels, test_labels = rng.integers(4, size=2000), rng.integers(4, size=1000)

    def maps(labels):
        """Class in the sign of two of four units: not by one linear map of labels."""
        signs = np.stack([labels % 2, labels // 2], axis=1) * 2 - 1
        flips = rng.choice([-1, 1], size=(len(labels), 1))
        units = np.concatenate([signs * flips, flips, 0 * flips], axis=1)
        return (units + 0.1 * rng.normal(size=units.shape)).reshape(-1, 2, 2, 1)

    found = probes.accuracies(maps(labels), labels, maps(test_labels), test_labels)
    assert found["accuracy"] > 0.99
    noise, test_noise = rng.normal(size=(2000, 3)), rng.normal(size=(1000, 3))
    found = probes.accuracies(noise, labels, test_noise, test_labels)
    # Four standard errors of a guess that is right one time in four.
    assert abs(found["accuracy"] - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 1000)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 5, 7, 20, 40, 200])
@pytest.mark.parametrize("count", [6, 12])
def test_times_rise_from_0_to_the_last_step(num_steps, count):
    times = spaced(num_steps, count)
    assert times[0] == 0
    assert times[-1] == num_steps
    assert (np.diff(times) > 0).all()
    assert len(times) <= count


def test_plane_of_two_dimensions_is_the_identity():
    points = np.random.default_rng(0).normal(size=(30, 2))
    np.testing.assert_array_equal(_plane(points)(points), points)


def test_plane_of_more_dimensions_is_that_of_largest_variance():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(500, 4)) * [0.1, 3, 0.2, 2] + [5, 6, 7, 8]
    flat = _plane(points)(points)
    assert flat.shape == (500, 2)
    np.testing.assert_allclose(flat.mean(axis=0), 0, atol=1e-12)
    eigenvalues = np.linalg.eigvalsh(np.cov(points.T))[::-1]
    np.testing.assert_allclose(np.cov(flat.T), np.diag(eigenvalues[:2]), atol=1e-12)


def test_examples_of_the_docstrings_of_probes():
    assert doctest.testmod(probes).failed == 0


@pytest.mark.parametrize(
    ("layers", "kept"),
    [(2, [1]), (3, [1, 2]), (5, [1, 2, 3, 4]), (30, [1, 10, 20, 29])],
)
def test_layers_are_cut_at_four_places_at_most(layers, kept):
    assert _cuts(layers) == kept
