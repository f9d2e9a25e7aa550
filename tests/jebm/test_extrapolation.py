"""The extrapolated Frechet distance, of Gaussians whose distance is a closed form."""

import numpy as np
import pytest

from jebm.metrics import extrapolated_frechet, feature_statistics, frechet_distance


def draw(seed, num, deviations, shift=0.0):
    """Samples of N(shift e_1, diag(deviations^2)), [num, D]."""
    x = np.random.default_rng(seed).standard_normal((num, len(deviations)))
    x *= deviations
    x[:, 0] += shift
    return x


DECAYING = 1 / np.sqrt(np.arange(1, 33))


@pytest.mark.parametrize(
    ("num", "deviations", "scale", "shift"),
    [
        (500, np.ones(2), 1.0, 3.0),
        (400, np.ones(16), 1.2, 1.0),
        (400, np.ones(16), 1.0, 0.0),
        (100, DECAYING, 1.5, 0.5),
        (100, DECAYING, 1.0, 0.0),
    ],
)
def test_intercept_is_the_distance_of_the_laws_within_its_error(
    num, deviations, scale, shift
):
    cov = np.diag(deviations**2)
    exact = frechet_distance(
        np.eye(len(cov))[0] * shift, scale**2 * cov, np.zeros(len(cov)), cov
    )
    assert exact == pytest.approx(shift**2 + (scale - 1) ** 2 * np.trace(cov))
    repeats = 60
    found = np.array(
        [
            extrapolated_frechet(
                draw(seed, num, scale * deviations, shift), np.zeros(len(cov)), cov
            )
            for seed in range(repeats)
        ]
    )
    values, errors = found.T
    # The mean of 60, within three of its errors and what is left of the bias.
    deviation = values.std(ddof=1)
    assert abs(values.mean() - exact) < 3 * deviation / np.sqrt(repeats) + 0.2 * (
        deviation
    )
    # A deviation of 60 is known to a tenth, an error of ten blocks to a quarter.
    assert errors.mean() == pytest.approx(deviation, rel=0.35)
    scores = (values - exact) / errors
    assert np.mean(np.abs(scores) < 2) > 0.85


def test_the_bias_of_the_plain_distance_is_gone():
    cov = np.diag(DECAYING**2)
    x = draw(0, 200, DECAYING)
    plain = frechet_distance(*feature_statistics(x), np.zeros(32), cov)
    found = extrapolated_frechet(x, np.zeros(32), cov)
    assert plain > 5 * found.standard_error  # of a distance of 0
    assert abs(found.value) < 3 * found.standard_error


def test_features_that_do_not_vary_have_their_distance_without_error():
    found = extrapolated_frechet(np.full((25, 3), 2.0), np.zeros(3), np.eye(3))
    assert found.value == pytest.approx(3 * 4 + 3)
    assert found.standard_error < 1e-9


def test_a_turn_of_features_and_reference_changes_nothing():
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.standard_normal((8, 8)))
    x, mean = rng.standard_normal((60, 8)), rng.standard_normal(8)
    cov = np.diag([0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])  # singular
    plain = extrapolated_frechet(x, mean, cov)
    turned = extrapolated_frechet(x @ turn, mean @ turn, turn.T @ cov @ turn)
    np.testing.assert_allclose(turned, plain, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "mean", "words"),
    [
        ((19, 3), 3, r"\[N >= 20, D\], got \(19, 3\)"),
        ((30,), 3, r"got \(30,\)"),
        ((30, 4), 3, "features of 4, a mean of 3"),
    ],
)
def test_other_features_are_refused(shape, mean, words):
    with pytest.raises(ValueError, match=words):
        extrapolated_frechet(np.zeros(shape), np.zeros(mean), np.eye(mean))


def test_features_that_are_not_finite_are_refused():
    x = np.zeros((30, 2))
    x[3, 1] = np.nan
    with pytest.raises(ValueError, match="features must be finite, got 1 of 60"):
        extrapolated_frechet(x, np.zeros(2), np.eye(2))
