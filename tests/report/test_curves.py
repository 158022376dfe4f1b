"""Curves of a page: thinned without losing what matters, averaged with intervals."""

import numpy as np
import pytest

from klrl.report.curves import POINTS, average, peaks, thinned
from klrl.report.intervals import band, over_seeds
from klrl.studies import student


@pytest.mark.parametrize("n", [1, 10, 200, 201, 5_000])
def test_a_thinned_curve_keeps_the_extremes_of_every_stretch(n):
    y = np.random.default_rng(n).normal(size=n)
    kept = thinned(y, 200)
    assert len(kept) <= max(4, min(n, 200))
    assert (kept[0], kept[-1]) == (0, n - 1)
    assert (np.diff(kept) > 0).all()
    for stretch in np.array_split(np.arange(n), 9):  # coarser than the 99 stretches, so their extremes are among those
        inner = stretch[len(stretch) // 11 : len(stretch) - len(stretch) // 11]
        if len(inner):
            assert y[kept][(kept >= stretch[0]) & (kept <= stretch[-1])].max() >= y[inner].max()


def test_a_single_peak_among_many_points_stays():
    y = np.zeros(100_000)
    y[54_321] = 1.0
    assert 54_321 in thinned(y, 200)
    y[:] = np.nan
    y[7] = 1.0
    assert 7 in thinned(y, 200)


def test_marks_that_would_cover_each_other_are_thinned_to_the_largest():
    x, y = np.arange(10_000.0), np.random.default_rng(0).random(10_000)
    kept = peaks(x, y, 100)
    assert len(kept) <= 101
    for start in range(0, 10_000, 100):  # nowhere is a gap, and the largest of all is there
        assert ((x[kept] >= start - 100) & (x[kept] < start + 200)).any()
    assert y.argmax() in kept
    assert [*peaks(x[:100], y[:100], 100)] == [*range(100)]


def test_the_average_of_seeds_with_the_same_steps_is_that_of_each_step():
    random = np.random.default_rng(1)
    x, ys = np.arange(20.0), random.normal(size=(5, 20))
    steps, mean, low, high, n = average([(x, y) for y in ys])
    np.testing.assert_array_equal(steps, x)
    for i in range(20):
        expected = student(ys[:, i])
        assert (mean[i], low[i], high[i]) == pytest.approx((expected.value, expected.low, expected.high))
    assert (n == 5).all()


def test_seeds_count_only_between_their_own_points():
    short = (np.array([0.0, 10.0]), np.array([0.0, 10.0]))
    long = (np.array([0.0, 20.0]), np.array([0.0, 20.0]))
    x, mean, low, _, n = average([short, long, long])
    np.testing.assert_allclose(mean, x)  # all lie on one line, so interpolation is exact
    assert [*n[x <= 10.0]] == [3] * (x <= 10.0).sum()
    assert [*n[x > 10.0]] == [2] * (x > 10.0).sum()
    assert np.isnan(low[x > 10.0]).all()
    np.testing.assert_allclose(low[x <= 10.0], x[x <= 10.0], atol=1e-12)


def test_the_average_ends_where_fewer_than_half_of_the_seeds_go_on():
    curves = [(np.array([0.0, end]), np.array([0.0, end])) for end in (10.0, 10.0, 30.0)]
    x, *_ = average(curves)
    assert x[-1] == 10.0


def test_long_curves_are_averaged_at_a_few_points():
    x = np.arange(1_000.0)
    steps, mean, *_ = average([(x, 2.0 * x), (x[::7], 4.0 * x[::7])])
    assert len(steps) == len(mean) == POINTS
    there = steps <= x[::7][-1]
    np.testing.assert_allclose(mean[there], 3.0 * steps[there])


def test_every_point_has_students_interval_of_the_seeds_that_have_a_value():
    curves = np.random.default_rng(2).normal(size=(6, 40))
    curves[np.random.default_rng(3).random((6, 40)) < 0.4] = np.nan
    mean, low, high, n = band(curves)
    for i in range(40):
        expected = student(curves[:, i])
        assert n[i] == expected.n
        found = (mean[i], low[i], high[i])
        assert found == pytest.approx((expected.value, expected.low, expected.high), nan_ok=True)
    assert over_seeds([1.0, np.nan, np.inf]).n == 1
