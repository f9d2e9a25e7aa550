import doctest
import json

import numpy as np
import pytest

import jebm
from experiments.data import datasets
from experiments.evaluation.anomaly import Anomaly
from experiments.runs import open_run
from experiments.streams import Stream
from jebm import checkpoints
from tests.experiments.evaluation.saved import of_run, save_run
from tests.models import random_params
from tools.verify import conventions

HELDOUT = 4
SETTINGS = {
    "data.heldout_class": HELDOUT,
    "eval.protocol": "anomaly",
    "eval.num_posterior_samples": 1,
    "eval.anomaly.num_augmentations": 1,
    "eval.anomaly.num_neighbours": 2,
    "eval.anomaly.neighbours_weight": 0.5,
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A run with three checkpoints of random parameters, and what it printed."""
    folder = tmp_path_factory.mktemp("conventions")
    path = save_run(folder / "run", **SETTINGS)
    model, _ = jebm.load(path)
    for step in (20, 30):
        jebm.save(path, model, random_params(model, seed=step), step)
    conventions.main([str(path), f"--out={folder / 'out'}"])
    return path, json.loads((folder / "out" / "conventions.json").read_text())["run"]


@pytest.mark.slow
def test_clean_areas_are_those_of_the_protocol(measured):
    path, found = measured
    run = open_run(of_run(path), path)
    evaluator = Anomaly.of(run.experiment.eval.evaluators["anomaly"])
    numbers = evaluator.evaluate(run.key(Stream.EVALUATION), run).numbers
    auprc, auroc = found["clean"]["score"]
    # The posterior's noise is that of other batches: three standard errors of an area
    # of so few anomalies.
    assert auprc == pytest.approx(numbers["auprc"], abs=0.08)
    assert auroc == pytest.approx(numbers["auroc"], abs=0.08)


@pytest.mark.slow
def test_what_is_chosen_on_the_test_is_no_worse(measured):
    path, found = measured
    assert len(checkpoints.steps(path)) == 3
    for name in conventions.SCORES:
        clean, best = found["clean"][name], found["best checkpoint"][name]
        assert best[0] >= clean[0]
        assert best[0] >= found["mean of checkpoints"][name][0]
        assert found["best w"][name][0] >= clean[0]  # w = 1 is among those tried


@pytest.mark.slow
def test_table_is_written_beside_the_areas(measured):
    path, found = measured
    text = (path.parent / "out" / "conventions.md").read_text()
    auprc, auroc = found["a tenth"]["score"]
    cell = f"{auprc:.3f} ({auroc:.3f})".replace("0.", ".")
    assert f"| a tenth | {cell} |" in text


def test_conventions_differ_in_their_test_images(tmp_path):
    path = save_run(tmp_path / "run", **SETTINGS)
    run = open_run(of_run(path), path)
    kinds = conventions.kinds(run)
    test = datasets.load(run.experiment.data)["test"]
    num, normal = len(test.labels), (test.labels != HELDOUT).sum()
    np.testing.assert_array_equal(kinds.splits["test"].images[:num], test.images)
    assert kinds.trained.sum() == round(0.8 * normal)
    draw = np.random.default_rng(0)
    again = conventions.drawn_again(draw, kinds)
    assert len(set(again)) == len(again) == num
    assert kinds.anomalous[again].sum() == kinds.anomalous.sum()
    assert kinds.trained[again].sum() == kinds.trained.sum()
    tenth = conventions.a_tenth(draw, kinds)
    assert not kinds.trained[tenth].any()
    assert kinds.anomalous[tenth].mean() == pytest.approx(0.1, abs=0.003)


def test_a_run_that_cannot_be_compared_is_refused(tmp_path):
    path = save_run(tmp_path / "run", **SETTINGS)
    with pytest.raises(SystemExit, match=r"several checkpoints, got 4 and steps \[8\]"):
        conventions.main([str(path), f"--out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_examples_of_the_docstrings():
    assert doctest.testmod(conventions).failed == 0
