import subprocess
import sys

import numpy as np
import pytest
from scipy import linalg, special, stats
from sklearn import metrics as sklearn_metrics
from sklearn import neighbors

from jebm.metrics import (
    energy_distance,
    feature_statistics,
    frechet_distance,
    inception_score,
    kernel_distance,
    merge_moments,
    moments,
    precision_recall,
    statistics_of,
)
from jebm.metrics.inception_score import ScoreSums

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


def random_covariance(dim, rank):
    factor = RNG.normal(size=(dim, rank))
    return factor @ factor.T


def random_rotation(dim):
    return stats.ortho_group.rvs(dim, random_state=RNG)


def root_trace_of_scipy(cov1, cov2):
    return np.trace(linalg.sqrtm(cov1 @ cov2)).real


def test_feature_statistics_are_numpys_in_float64():
    features = RNG.normal(3, 2, size=(40, 5)).astype(np.float32)
    mean, covariance = feature_statistics(features)
    assert mean.dtype == covariance.dtype == np.float64
    np.testing.assert_allclose(mean, features.mean(0, np.float64), rtol=1e-12)
    expected = np.cov(features.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(covariance, expected, rtol=1e-12)


def test_frechet_distance_of_diagonal_gaussians_is_that_of_means_and_deviations():
    means, scales = RNG.normal(size=(2, 6)), RNG.uniform(0.1, 3, size=(2, 6))
    distance = frechet_distance(
        means[0], np.diag(scales[0] ** 2), means[1], np.diag(scales[1] ** 2)
    )
    expected = ((means[0] - means[1]) ** 2 + (scales[0] - scales[1]) ** 2).sum()
    np.testing.assert_allclose(distance, expected, rtol=1e-12)


def test_frechet_distance_of_commuting_covariances_is_that_of_their_spectra():
    rotation, spectra = random_rotation(7), RNG.uniform(0.1, 3, size=(2, 7))
    cov1, cov2 = (rotation * s @ rotation.T for s in spectra)
    distance = frechet_distance(np.zeros(7), cov1, np.zeros(7), cov2)
    expected = ((np.sqrt(spectra[0]) - np.sqrt(spectra[1])) ** 2).sum()
    np.testing.assert_allclose(distance, expected, rtol=1e-10)


@pytest.mark.parametrize("dim", [1, 2, 20])
def test_frechet_distance_is_that_of_scipys_matrix_root(dim):
    mean1, mean2 = RNG.normal(size=(2, dim))
    cov1, cov2 = random_covariance(dim, dim + 3), random_covariance(dim, dim + 3)
    expected = ((mean1 - mean2) ** 2).sum() + np.trace(cov1 + cov2)
    expected -= 2 * root_trace_of_scipy(cov1, cov2)
    distance = frechet_distance(mean1, cov1, mean2, cov2)
    np.testing.assert_allclose(distance, expected, rtol=1e-9)


def test_frechet_distance_of_singular_covariances_lives_in_what_they_span():
    inside1, inside2 = random_covariance(5, 8), random_covariance(5, 8)
    expected = np.trace(inside1 + inside2) - 2 * root_trace_of_scipy(inside1, inside2)
    span = random_rotation(12)[:, :5]
    cov1, cov2 = (span @ cov @ span.T for cov in (inside1, inside2))
    distance = frechet_distance(np.zeros(12), cov1, np.zeros(12), cov2)
    np.testing.assert_allclose(distance, expected, rtol=1e-9)


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_frechet_distance_is_zero_for_equal_statistics_of_any_rank(rank):
    mean, cov = RNG.normal(size=9), random_covariance(9, rank)
    assert 0 <= frechet_distance(mean, cov, mean, cov) < 1e-12 * np.trace(cov)


def test_frechet_distance_to_a_point_is_the_shift_and_the_variance():
    cov = random_covariance(6, 2)
    distance = frechet_distance(np.zeros(6), cov, np.full(6, 2), np.zeros((6, 6)))
    np.testing.assert_allclose(distance, 24 + np.trace(cov), rtol=1e-12)


def test_frechet_distance_is_symmetric_and_blind_to_rotations_of_the_features():
    # Fewer points than dimensions, so that both covariances are singular.
    x, y = RNG.normal(size=(8, 10)), RNG.normal(0.5, 2, size=(9, 10))
    rotation = random_rotation(10)

    def distance(x, y):
        return frechet_distance(*feature_statistics(x), *feature_statistics(y))

    np.testing.assert_allclose(distance(y, x), distance(x, y), rtol=1e-10)
    rotated = distance(x @ rotation, y @ rotation)
    np.testing.assert_allclose(rotated, distance(x, y), rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 3), (0, 3), (5,), (5, 0), (2, 3, 4)])
def test_feature_statistics_refuse_what_is_not_two_rows(shape):
    with pytest.raises(ValueError, match=r"features must be \[N >= 2, D >= 1\]"):
        feature_statistics(np.zeros(shape))


@pytest.mark.parametrize(
    ("mean2", "cov2", "words"),
    [
        (np.zeros(2), np.eye(3), r"mean2 and cov2 must be \[D\] and \[D, D\]"),
        (np.zeros((2, 1)), np.eye(2), "mean2 and cov2 must be"),
        (np.zeros(0), np.zeros((0, 0)), "mean2 and cov2 must be"),
        (np.zeros(3), np.eye(3), r"unequal dimensions: \(2,\) and \(3,\)"),
        (np.zeros(2), np.array([[1, 0.5], [0, 1]]), "cov2 must be symmetric"),
    ],
)
def test_frechet_distance_refuses_statistics_that_do_not_fit(mean2, cov2, words):
    with pytest.raises(ValueError, match=words):
        frechet_distance(np.zeros(2), np.eye(2), mean2, cov2)


@pytest.mark.parametrize("sizes", [(1, 1), (3, 40), (17, 1, 9, 1)])
def test_moments_of_batches_are_those_of_all_together(sizes):
    # Far from 0, where sums of squares would cancel.
    features = 1e6 + RNG.normal(size=(sum(sizes), 5))
    parts = np.split(features, np.cumsum(sizes)[:-1])
    merged = moments(parts[0])
    for part in parts[1:]:
        merged = merge_moments(merged, moments(part))
    mean, covariance = statistics_of(merged)
    np.testing.assert_allclose(mean, features.mean(0), rtol=1e-14)
    expected = np.cov(features - 1e6, rowvar=False)
    np.testing.assert_allclose(covariance, expected, rtol=1e-6, atol=1e-9)


def test_moments_refuse_what_has_no_statistics():
    with pytest.raises(ValueError, match="needs 2 features, got 1"):
        statistics_of(moments(np.ones((1, 3))))
    with pytest.raises(ValueError, match=r"must be \[N >= 1, D >= 1\], got \(0, 3\)"):
        moments(np.ones((0, 3)))


@pytest.mark.parametrize(("num", "dim"), [(400, 30), (20, 40), (31, 30)])
def test_frechet_distance_is_that_of_the_usual_matrix_root(num, dim):
    # Well-conditioned, of low rank, and nearly singular covariances of features.
    x, y = np.abs(RNG.normal(size=(2, num, dim)) @ RNG.normal(size=(dim, dim)))
    (mean1, cov1), (mean2, cov2) = feature_statistics(x), feature_statistics(1.5 * y)
    expected = ((mean1 - mean2) ** 2).sum() + np.trace(cov1 + cov2)
    expected -= 2 * root_trace_of_scipy(cov1, cov2)
    distance = frechet_distance(mean1, cov1, mean2, cov2)
    np.testing.assert_allclose(distance, expected, rtol=1e-6)


def mmd_of_sklearn(x, y):
    k = {
        (i, j): sklearn_metrics.pairwise.polynomial_kernel(a, b, degree=3, coef0=1)
        for i, a in enumerate((x, y))
        for j, b in enumerate((x, y))
    }
    off = ~np.eye(len(x), dtype=bool)
    return k[0, 0][off].mean() + k[1, 1][off].mean() - 2 * k[0, 1].mean()


def test_kernel_distance_is_the_mean_of_blocks_by_scikit_learns_kernel():
    x, y = RNG.normal(size=(70, 6)), RNG.normal(0.3, 1, size=(65, 6))
    blocks = [mmd_of_sklearn(x[i : i + 20], y[i : i + 20]) for i in (0, 20, 40)]
    found = kernel_distance(x, y, block_size=20)
    np.testing.assert_allclose(found.value, np.mean(blocks), rtol=1e-10)
    error = np.std(blocks, ddof=1) / np.sqrt(3)
    np.testing.assert_allclose(found.standard_error, error, rtol=1e-10)
    whole = kernel_distance(x[:65], y, block_size=1000)
    np.testing.assert_allclose(whole.value, mmd_of_sklearn(x[:65], y), rtol=1e-10)
    assert np.isnan(whole.standard_error)


def test_kernel_distance_of_equal_laws_is_zero_on_average_and_negative_half_the_time():
    x, y = RNG.normal(size=(2, 20_000, 4))
    found = kernel_distance(x, y, block_size=20)
    assert abs(found.value) < 4 * found.standard_error
    values = [
        kernel_distance(x[i : i + 20], y[i : i + 20]).value for i in range(0, 4000, 20)
    ]
    assert 0.3 < np.mean(np.array(values) < 0) < 0.8


@pytest.mark.parametrize(
    ("x", "y", "block_size", "words"),
    [
        ((5, 2), (5, 3), 2, r"must be \[N, D\] and \[M, D\]"),
        ((5,), (5,), 2, "must be"),
        ((5, 2), (1, 2), 2, "at least 2 features"),
        ((5, 2), (5, 2), 1, "block_size 1"),
    ],
)
def test_kernel_distance_refuses_what_are_not_two_sets(x, y, block_size, words):
    with pytest.raises(ValueError, match=words):
        kernel_distance(np.zeros(x), np.zeros(y), block_size)


def test_inception_score_is_the_entropy_of_the_mean_less_the_mean_entropy():
    logits = 3 * RNG.normal(size=(50, 7))
    p = special.softmax(logits, axis=1)
    scores = [
        np.exp(stats.entropy(part.mean(0)) - stats.entropy(part, axis=1).mean())
        for part in (p[:16], p[16:33], p[33:])
    ]
    found = inception_score(logits, num_splits=3)
    np.testing.assert_allclose(found.mean, np.mean(scores), rtol=1e-12)
    np.testing.assert_allclose(found.deviation, np.std(scores), rtol=1e-9)


def test_inception_score_lies_between_one_and_the_number_of_classes():
    sure = 1e3 * np.eye(6)[np.arange(60) % 6]
    assert inception_score(sure, 1).mean == pytest.approx(6, rel=1e-12)
    assert inception_score(np.ones((60, 6)), 1).mean == pytest.approx(1, rel=1e-12)
    assert inception_score(sure[::6], 2).mean == pytest.approx(1, rel=1e-12)
    for num_splits in (0, 61):
        with pytest.raises(ValueError, match=rf"in \[1, 60\], got {num_splits}"):
            inception_score(sure, num_splits)
    with pytest.raises(ValueError, match=r"logits must be \[N >= 1, C >= 1\]"):
        inception_score(np.ones(5), 1)


def share_by_scikit_learn(points, support, k):
    own = neighbors.NearestNeighbors(n_neighbors=k).fit(support)
    radii = own.kneighbors()[0][:, -1]  # without the points themselves
    apart = sklearn_metrics.pairwise_distances(points, support)
    return (apart <= radii).any(axis=1).mean()


@pytest.mark.parametrize("k", [1, 3, 8])
def test_precision_and_recall_are_those_by_scikit_learns_neighbours(k):
    # More than one chunk of rows, and overlapping laws.
    real, made = RNG.normal(size=(1100, 3)), RNG.normal(1, 0.7, size=(1050, 3))
    found = precision_recall(real, made, k)
    assert found.precision == pytest.approx(share_by_scikit_learn(made, real, k))
    assert found.recall == pytest.approx(share_by_scikit_learn(real, made, k))
    assert 0.2 < found.recall < found.precision < 1


def test_precision_and_recall_of_equal_far_and_collapsed_sets():
    real = RNG.normal(size=(200, 5))
    assert precision_recall(real, real[::-1]) == (1, 1)
    assert precision_recall(real, real + 100) == (0, 0)
    one_mode = real[:1] + 1e-3 * RNG.normal(size=(200, 5))
    collapsed = precision_recall(real, one_mode)
    assert collapsed.precision == 1
    assert collapsed.recall <= 1 / 100


@pytest.mark.parametrize(
    ("real", "made", "k", "words"),
    [
        ((9, 2), (9, 3), 3, r"must be \[N, D\] and \[M, D\]"),
        ((9, 2), (3, 2), 3, "less than both sets hold, 9 and 3, got 3"),
        ((9, 2), (9, 2), 0, "at least 1"),
    ],
)
def test_precision_and_recall_refuse_sets_without_neighbours(real, made, k, words):
    with pytest.raises(ValueError, match=words):
        precision_recall(np.zeros(real), np.zeros(made), k)


def shares_by_loops(real, made, k):
    """Precision and recall, one pair of points after the other."""

    def apart(a, b):
        return sum((s - t) ** 2 for s, t in zip(a, b, strict=True))

    def share(points, support):
        radii = [
            sorted(apart(a, b) for j, b in enumerate(support) if i != j)[k - 1]
            for i, a in enumerate(support)
        ]
        within = [
            any(apart(p, s) <= r for s, r in zip(support, radii, strict=True))
            for p in points
        ]
        return sum(within) / len(points)

    return share(made.tolist(), real.tolist()), share(real.tolist(), made.tolist())


@pytest.mark.parametrize("seed", range(20))
def test_precision_and_recall_are_those_by_loops_where_points_tie_and_repeat(seed):
    # Of a few integers, so that distances tie and points repeat, in a set and across.
    rng = np.random.default_rng(seed)
    dim, k = rng.integers(1, 4), rng.integers(1, 4)
    real = rng.integers(0, 6, size=(rng.integers(4, 90), dim))
    made = rng.integers(3, 12, size=(rng.integers(4, 90), dim))
    assert precision_recall(real, made, k) == shares_by_loops(real, made, k)


def test_copies_lie_within_balls_of_radius_zero():
    for dim in range(1, 30):
        rows = np.tile(RNG.normal(10, 1, size=dim), (9, 1))
        for order in "CF":  # in memory, by which matrix products round differently
            assert precision_recall(rows, rows.copy(order)) == (1, 1), (dim, order)
    # Four of each of 50 points, of which the generated ones are 30, and far ones.
    real = np.repeat(RNG.normal(10, 1, size=(50, 16)), 4, axis=0)
    made = np.concatenate([real[RNG.permutation(200)][:100], np.zeros((25, 16))])
    copied = (real[:, None] == made).all(2)
    radii = np.sort(((made[:, None] - made) ** 2).sum(2), axis=1)[:, 3]
    covered = (((real[:, None] - made) ** 2).sum(2) <= radii).any(1)
    found = precision_recall(real, made)
    assert found.precision == copied.any(0).mean() == 0.8
    assert found.recall == covered.mean()


@pytest.mark.parametrize("offset", [1e6, -1e6])
def test_precision_and_recall_are_blind_to_where_the_origin_is(offset):
    # Multiples of 2^-10 less than 1: moved by 10^6 they are exact in float64.
    rng = np.random.default_rng(0)
    real = np.round(16 * rng.normal(size=(500, 16))) / 1024
    made = np.round(11 * rng.normal(size=(400, 16))) / 1024
    found = precision_recall(real, made)
    assert found == precision_recall(real + offset, made + offset)
    assert found.precision == share_by_scikit_learn(made, real, 3)
    assert found.recall == share_by_scikit_learn(real, made, 3)
    assert 0.1 < found.recall < 0.5 < found.precision


POINTS, MEAN, COV = np.ones((20, 2)), np.zeros(2), np.eye(2)
MOMENTS = moments(POINTS)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("metric", "name", "good"),
    [
        (lambda a: energy_distance(a, POINTS), "x", POINTS),
        (lambda a: energy_distance(POINTS, a), "y", POINTS),
        (feature_statistics, "features", POINTS),
        (moments, "features", POINTS),
        (lambda a: merge_moments(MOMENTS._replace(mean=a), MOMENTS), "a.mean", MEAN),
        (lambda a: merge_moments(MOMENTS, MOMENTS._replace(mean=a)), "b.mean", MEAN),
        (
            lambda a: merge_moments(MOMENTS._replace(scatter=a), MOMENTS),
            "a.scatter",
            COV,
        ),
        (
            lambda a: merge_moments(MOMENTS, MOMENTS._replace(scatter=a)),
            "b.scatter",
            COV,
        ),
        (lambda a: statistics_of(MOMENTS._replace(mean=a)), "moments.mean", MEAN),
        (lambda a: statistics_of(MOMENTS._replace(scatter=a)), "moments.scatter", COV),
        (lambda a: frechet_distance(a, COV, MEAN, COV), "mean1", MEAN),
        (lambda a: frechet_distance(MEAN, a, MEAN, COV), "cov1", COV),
        (lambda a: frechet_distance(MEAN, COV, a, COV), "mean2", MEAN),
        (lambda a: frechet_distance(MEAN, COV, MEAN, a), "cov2", COV),
        (lambda a: inception_score(a, 4), "logits", POINTS),
        (ScoreSums.of, "logits", POINTS),
        # The last rows are in no block of 15, and are looked at all the same.
        (lambda a: kernel_distance(a, POINTS, 15), "x", POINTS),
        (lambda a: kernel_distance(POINTS, a, 15), "y", POINTS),
        (lambda a: precision_recall(a, POINTS), "real", POINTS),
        (lambda a: precision_recall(POINTS, a), "generated", POINTS),
    ],
)
def test_every_metric_says_how_many_values_of_which_argument_are_not_finite(
    metric, name, good, bad
):
    metric(good)
    values = good.copy()
    values.flat[[0, -1]] = bad, np.nan  # in the first split or block, and the last
    with pytest.raises(ValueError) as caught:
        metric(values)
    assert str(caught.value) == (
        f"{name} must be finite, got 2 of {values.size} values that are NaN or infinite"
    )


def test_importing_the_metrics_does_not_wait_for_scipy():
    program = (
        "import sys, jebm.metrics\n"
        "print([m for m in ('scipy.spatial', 'scipy.special') if m in sys.modules])"
    )
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert process.stdout == "[]\n", process.stderr
