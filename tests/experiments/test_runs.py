import jax
import numpy as np

from experiments.data.loaders import Split
from experiments.evaluation import anomaly_terms
from experiments.evaluation.anomaly_score import ImageTerms
from tests.data_files import random_images
from tests.experiments.evaluation.saved import run_of

GREY = random_images(12, (8, 8, 1))


def run(binarize):
    """A run of no model, whose held-out images are drawn as `datasets.load` does."""
    heldout = (GREY[:5] > 127) * np.uint8(255) if binarize else GREY[:5]
    splits = {
        "train": Split(GREY, np.zeros(12, int)),
        "test": Split(heldout, np.zeros(5, int)),
    }
    return run_of(None, None, splits, **{"data.binarize": binarize})


def test_images_of_training_are_those_that_the_model_sees():
    np.testing.assert_array_equal(run(False).training, GREY)
    binary = run(True).training
    assert set(np.unique(binary)) == {0, 255}
    np.testing.assert_array_equal(binary, run(True).training)
    assert abs(binary.mean() - GREY.mean()) < 4 * 127.5 / np.sqrt(GREY.size)


def test_a_score_of_anomalies_never_sees_grey_where_the_model_sees_none(monkeypatch):
    seen = []

    def terms(key, run, images):
        seen.append(np.unique(images[:]).tolist())
        return ImageTerms(*np.zeros((3, len(images))))

    monkeypatch.setattr(anomaly_terms, "_terms", terms)
    positions = lambda key, run, images: np.zeros((len(images), 2))  # noqa: E731
    monkeypatch.setattr(anomaly_terms, "_positions", positions)
    anomaly_terms.terms_of(jax.random.key(0), run(True), 2, 1)
    assert seen == [[0, 255]] * 4  # as they are, bent twice, and those of training
