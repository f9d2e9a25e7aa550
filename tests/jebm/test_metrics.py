import numpy as np
import pytest
from scipy import stats

from jebm.metrics import energy_distance

RNG = np.random.default_rng(0)


def test_energy_distance_in_one_dimension_is_scipys():
    x, y = RNG.normal(size=200), RNG.normal(1, 2, size=300)
    expected = stats.energy_distance(x, y)
    np.testing.assert_allclose(
        energy_distance(x[:, None], y[:, None]), expected, rtol=1e-10
    )


def test_energy_distance_of_two_shifted_normals_in_the_plane():
    # E|N(m, 2 I)| in the plane is sqrt(pi) L(-m^2 / 4), L the Laguerre function 1/2.
    from scipy.special import hyp1f1

    shift, num = 1.5, 3000
    x = RNG.normal(size=(num, 2))
    y = RNG.normal([shift, 0], size=(num, 2))
    between = np.sqrt(np.pi) * hyp1f1(-0.5, 1, -(shift**2) / 4)
    expected = 2 * between - 2 * np.sqrt(np.pi)
    # Each mean over pairs has a standard error of about 1 / sqrt(num).
    assert abs(energy_distance(x, y) ** 2 - expected) < 4 * 2 / np.sqrt(num)


def test_energy_distance_is_zero_for_a_sample_and_itself_in_another_order():
    x = RNG.normal(size=(50, 3))
    assert energy_distance(x, x[::-1]) < 1e-7


@pytest.mark.parametrize(
    ("x", "y"),
    [((5, 2), (5, 3)), ((0, 2), (5, 2)), ((5,), (5,)), ((5, 2), (2, 5, 2))],
)
def test_energy_distance_refuses_what_are_not_two_sets_of_points(x, y):
    with pytest.raises(ValueError, match="x and y must be non-empty"):
        energy_distance(np.zeros(x), np.zeros(y))
