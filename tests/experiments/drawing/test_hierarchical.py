import json
from unittest import mock

import jax
import numpy as np
import pytest

import jebm
from experiments import pictures
from experiments.drawing import hierarchical
from experiments.drawing.hierarchical import Hierarchical, Rows, agreement_of
from experiments.evaluation import classifier
from tests.experiments.drawing.made_up import grey, shown, titles

AGREEMENT = {"in_rows": 0.5, "overall": 0.25}


def made_up(layers, cuts, agreement=AGREEMENT):
    panels = [
        Rows(k, prior, grey(8, 8), agreement)
        for k in cuts
        for prior in ("ebm", "gaussian")
    ]
    return Hierarchical(layers, tuple(panels))


@pytest.mark.slow
def test_hierarchical_json_has_agreement_of_both_priors(drawn_run):
    run, _ = drawn_run
    values = json.loads((run.path / "figures" / "hierarchical.json").read_text())
    assert set(values) == {"k=1"}
    for prior in ("ebm", "gaussian"):
        assert 0 <= values["k=1"][prior]["overall"] <= 1
        assert 0 <= values["k=1"][prior]["in_rows"] <= 1


@pytest.mark.parametrize(("known", "num"), [([], 8), (["digits"], 64)])
def test_images_of_a_row_share_the_layers_above(run, monkeypatch, known, num):
    monkeypatch.setattr(classifier, "known", lambda *_: known)
    with mock.patch.object(jebm, "sample", wraps=jebm.sample) as sample:
        results = hierarchical.compute(jax.random.key(0), run)
    assert [(rows.k, rows.prior) for rows in results.panels] == [
        (1, "ebm"),
        (1, "gaussian"),
    ]
    kept = [c.kwargs["above"] for c in sample.call_args_list if "above" in c.kwargs]
    assert len(kept) == 2
    for (above,) in kept:  # z_2 alone
        rows = np.asarray(above).reshape(num, 16, 2)
        assert (rows == rows[:, :1]).all()
        assert len(np.unique(rows[:, 0], axis=0)) == num
    for rows in results.panels:
        assert rows.images.shape == (8, 8, 8, 8, 1)
        assert len(np.unique(rows.images[0], axis=0)) == 8


def test_without_a_classifier_there_are_pictures_and_no_numbers(run, monkeypatch):
    monkeypatch.setattr(classifier, "known", lambda: ["mnist"])
    results = hierarchical.compute(jax.random.key(0), run)
    assert [rows.agreement for rows in results.panels] == [None, None]
    assert hierarchical.numbers(results) == {}
    assert titles(hierarchical.draw(results)) == [
        "tilted prior, z_2 kept",
        "Gaussian prior, z_2 kept",
    ]


def test_images_shown_are_the_same_with_and_without_a_classifier(run, monkeypatch):
    with_labels = hierarchical.compute(jax.random.key(0), run)
    monkeypatch.setattr(classifier, "known", lambda: [])
    without = hierarchical.compute(jax.random.key(0), run)
    for ours, theirs in zip(with_labels.panels, without.panels, strict=True):
        assert ours.agreement is not None and theirs.agreement is None
        np.testing.assert_allclose(ours.images, theirs.images, atol=1e-5)


@pytest.mark.parametrize(("layers", "rows"), [(2, 64), (3, 64), (4, 42), (10, 32)])
def test_more_layers_cost_no_more_chains(make_run, monkeypatch, layers, rows):
    """Each chain costs what its layers cost: together the figure is in proportion."""
    deep = make_run(**{"backbone.latent_dims": (2,) * layers})
    monkeypatch.setattr(classifier, "labels", lambda name: lambda x: np.zeros(len(x)))
    drawn = []

    def draw(key, run, k, prior, labels, num):
        drawn.append(num)
        return made_up(layers, (k,)).panels[0]

    monkeypatch.setattr(hierarchical, "_sample_rows", draw)
    hierarchical.compute(jax.random.key(0), deep)
    assert set(drawn) == {rows}
    assert sum(drawn) <= 2 * 128


def test_numbers_are_named_by_k_and_prior():
    values = hierarchical.numbers(made_up(3, (1, 2)))
    assert values == {
        k: {"ebm": AGREEMENT, "gaussian": AGREEMENT} for k in ("k=1", "k=2")
    }


def test_drawn_a_column_per_k_with_the_tilted_prior_above():
    figure = hierarchical.draw(made_up(7, (1, 5)))
    lines = "\nlabelled alike: 0.50 of pairs in a row, 0.25 overall"
    assert titles(figure) == [
        "tilted prior, z_2 to z_7 kept" + lines,
        "tilted prior, z_6, z_7 kept" + lines,
        "Gaussian prior, z_2 to z_7 kept" + lines,
        "Gaussian prior, z_6, z_7 kept" + lines,
    ]
    expected = np.asarray(pictures.grid(grey(8, 8).reshape(64, 8, 8, 1)))
    for axis in figure.axes:
        np.testing.assert_array_equal(shown(axis), expected)


def test_agreement_is_one_where_rows_have_one_label_and_zero_where_all_differ():
    assert agreement_of(np.zeros((3, 4), int)) == {"in_rows": 1, "overall": 1}
    assert agreement_of(np.arange(12).reshape(3, 4)) == {"in_rows": 0, "overall": 0}
    rows = agreement_of(np.arange(3).repeat(4).reshape(3, 4))
    assert rows["in_rows"] == 1
    assert rows["overall"] == pytest.approx(3 * 6 / 66)  # of 12 over 2 pairs
