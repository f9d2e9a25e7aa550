import doctest

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from experiments.evaluation import surprise
from experiments.evaluation.layer_scores import LayerTerms


def terms(log_likelihood, log_latents):
    """Of two layers; what the statistic does not read is not a number."""
    nothing = np.full(len(log_latents), np.nan)
    return LayerTerms((nothing, log_likelihood), (log_latents, nothing))


def test_tail_is_that_of_the_law_of_the_known_values():
    known = np.random.default_rng(0).exponential(size=20_000)
    values = np.array([0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 30.0])
    found = surprise.log_tail(values, known)
    # A share of 20,000 has a standard error of at most .0035; the mean excess of the
    # largest 1,000 is 1 within .03, so that log P at 30 is -30 within 3 of these.
    np.testing.assert_allclose(np.exp(found[:5]), np.exp(-values[:5]), atol=0.012)
    np.testing.assert_allclose(found[5:], -values[5:], rtol=0.1)


def test_tail_falls_with_the_value_and_beyond_all_known_ones():
    known = np.random.default_rng(1).normal(size=300)
    found = surprise.log_tail(np.linspace(-5, 20, 2000), known)
    assert found[0] == 0 and (np.diff(found) <= 0).all()
    assert (np.diff(found[-500:]) < 0).all()


def test_tails_of_values_all_alike_are_finite():
    found = surprise.log_tail(np.array([0.0, 1.0, 2.0]), np.ones(50))
    assert np.isfinite(found).all()
    assert found[0] == 0 and found[2] < -100


def test_of_images_like_those_of_training_it_is_a_chi_square():
    """Fisher's sum of two independent tests: half a chi-square of 4 degrees."""
    rng = np.random.default_rng(2)
    known, images = (terms(*rng.normal(size=(2, 20_000))) for _ in range(2))
    found = 2 * surprise.surprise(images, known)
    # Kolmogorov's distance of 20,000 draws is below .0136 in 999 of 1,000 cases, and
    # that of the known values, which it is held against, adds as much.
    assert stats.kstest(found, stats.chi2(df=4).cdf).statistic < 0.03


@pytest.mark.parametrize("kind", ["latents", "pixels"])
def test_it_finds_what_either_test_finds(kind):
    rng = np.random.default_rng(3)
    known, inside = (terms(*rng.normal(size=(2, 2000))) for _ in range(2))
    pixels, latents = rng.normal(size=(2, 2000))
    if kind == "latents":
        outside = terms(pixels, latents - 6)
    else:
        outside = terms(pixels - 6, latents)
    values = [surprise.surprise(each, known) for each in (inside, outside)]
    labels = np.repeat([0, 1], 2000)
    assert metrics.roc_auc_score(labels, np.concatenate(values)) > 0.99


def test_a_model_of_one_layer_is_judged_by_its_reconstruction():
    rng = np.random.default_rng(4)
    one = LayerTerms((rng.normal(size=9),), (rng.normal(size=9),))
    assert surprise.surprise(one, one).shape == (9,)


def test_examples_of_the_docstrings():
    assert doctest.testmod(surprise).failed == 0
