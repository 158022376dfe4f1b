"""Statistics over few seeds: by enumeration of every resample, by SciPy's tests, by simulated coverage."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from klrl.studies import (
    Interval,
    interquartile_mean,
    interval_of,
    kl_per_return,
    mean,
    paired_difference,
    performance_profile,
    probability_of_improvement,
    share_over,
    student,
)

NAN = math.nan


def trimmed(values):
    """The mean without the lowest and the highest quarter, by sorting."""
    cut = len(values) // 4
    kept = sorted(values)[cut : len(values) - cut]
    return sum(kept) / len(kept)


def every_resample(scores):
    """All stratified resamples of scores [n_seeds, n_tasks], each pooled over tasks."""
    by_task = [list(itertools.product(column, repeat=len(column))) for column in scores.T]
    return [[x for column in columns for x in column] for columns in itertools.product(*by_task)]


# -- averages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 11])
def test_the_interquartile_mean_leaves_out_a_quarter_at_either_end(n):
    values = np.random.default_rng(n).normal(size=n)
    assert interquartile_mean(values) == pytest.approx(trimmed(values))
    assert interquartile_mean(values[:, None] * [1.0, 3.0], axis=0) == pytest.approx(trimmed(values) * np.array([1, 3]))


def test_averages_without_an_axis_are_of_all_scores():
    scores = np.random.default_rng(0).normal(size=(5, 3))
    assert mean(scores) == pytest.approx(sum(scores.ravel()) / 15)
    assert interquartile_mean(scores) == pytest.approx(trimmed(scores.ravel()))


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
@pytest.mark.parametrize("n", [3, 4, 5, 10, 31])
def test_students_interval_is_that_of_scipys_test(n, confidence):
    values = np.random.default_rng(n).normal(100.0, 30.0, n)
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
    found = student(list(values), confidence)
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), expected.low, expected.high))
    assert (found.n, found.failed) == (n, 0)


@pytest.mark.parametrize("statistic", [mean, interquartile_mean], ids=["mean", "interquartile mean"])
@pytest.mark.parametrize("shape", [(3,), (4,), (5,), (3, 2), (4, 1)])
def test_a_bootstrap_interval_has_the_quantiles_of_all_resamples(shape, statistic):
    scores = np.random.default_rng(len(shape)).normal(size=shape)
    of_one = {mean: np.mean, interquartile_mean: trimmed}[statistic]
    every = sorted(of_one(resample) for resample in every_resample(scores.reshape(shape[0], -1)))
    found = interval_of(statistic, scores, confidence=0.9)
    assert found.value == pytest.approx(of_one(scores.ravel()))
    # 9999 resamples know a probability of 5 % to 0.2 %, one standard error.
    around = [np.quantile(every, [p - 0.008, p + 0.008]) for p in (0.05, 0.95)]
    for end, (low, high) in zip((found.low, found.high), around, strict=True):
        assert low - 1e-9 <= end <= high + 1e-9
    assert found.n == shape[0]


def test_tasks_are_resampled_apart_from_each_other():
    scores = np.array([[1.0, 100.0], [2.0, 300.0], [3.0, 200.0]])  # pooled, a resample could leave out a task
    sides = interval_of(lambda pooled, axis: np.mean(pooled < 50.0, axis=axis), scores)
    assert (sides.value, sides.low, sides.high) == (0.5, 0.5, 0.5)


def test_the_same_seed_resamples_the_same():
    scores = np.random.default_rng(0).normal(size=7)
    first, again, other = (interval_of(mean, scores, resamples=99, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("interval", [student, lambda x: interval_of(interquartile_mean, x)], ids=["t", "bootstrap"])
def test_constant_scores_have_an_interval_of_no_length(interval):
    assert interval([500.0] * 4) == Interval(500.0, 500.0, 500.0, 4)


# -- few seeds, failed runs -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "of", [student, lambda x: interval_of(mean, x), lambda x: probability_of_improvement(x, [0.0] * 5)]
)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_two_seeds_have_no_interval(of, n):
    found = of([1.0, 2.0, 3.0][:n])
    assert not math.isnan(found.value)
    assert (math.isnan(found.low), math.isnan(found.high), found.known, found.n) == (n < 3, n < 3, n >= 3, n)
    assert ("[" in f"{found:.2f}", "±" in found.plus_minus()) == (n >= 3, n >= 3)
    assert f"(n = {n})" in f"{found:.2f}"
    assert f"(n = {n})" in found.plus_minus()


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_failed_runs_are_left_out_and_counted(bad):
    scores = [1.0, bad, 2.0, 4.0, bad]
    good = [1.0, 2.0, 4.0]
    for of in (student, lambda x: interval_of(mean, x), lambda x: probability_of_improvement(x, [3.0] * 3)):
        found, expected = of(scores), of(good)
        assert (found.value, found.low, found.high, found.n) == (
            expected.value,
            expected.low,
            expected.high,
            expected.n,
        )
        assert (found.failed, expected.failed) == (2, 0)
    assert f"{student(scores):.1f}".endswith("(n = 3, 2 failed)")
    profile = performance_profile(scores, [1.5])
    assert (profile.value[0], profile.n, profile.failed) == (pytest.approx(2 / 3), 3, 2)


def test_of_tasks_the_fewest_seeds_count():
    found = interval_of(mean, [[1.0, 2.0], [2.0, NAN], [3.0, 4.0]])
    assert (found.value, found.n, found.failed) == (pytest.approx(12 / 5), 2, 1)
    assert not found.known


def test_nothing_is_said_of_a_task_on_which_every_run_failed():
    scores = [[1.0, NAN], [2.0, NAN], [3.0, NAN]]
    for found in (interval_of(mean, scores), probability_of_improvement(scores, scores), student([NAN] * 3)):
        assert math.isnan(found.value)
        assert (found.n, found.known) == (0, False)
    assert np.isnan(performance_profile(scores, [0.0, 1.0]).value).tolist() == [True, True]
    assert f"{student([]):.1f}" == "nan (n = 0)"


# -- coverage -------------------------------------------------------------------------------------


def coverage(interval, truth, repetitions, seed=0):
    """The share of intervals that hold the truth, of this many samples."""
    rng = np.random.default_rng(seed)
    held = [(found := interval(rng)).low <= truth <= found.high for _ in range(repetitions)]
    return np.mean(held)


def test_students_interval_covers_the_mean_of_three_normal_scores_as_often_as_it_says():
    share = coverage(lambda rng: student(rng.normal(size=3)), 0.0, 2000)
    assert share == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 2000))


@pytest.mark.parametrize(("n", "documented"), [(3, 0.76), (10, 0.91)])
def test_bootstrap_intervals_cover_as_often_as_their_documentation_says(n, documented):
    share = coverage(lambda rng: interval_of(mean, rng.normal(size=n), resamples=499), 0.0, 800)
    assert share == pytest.approx(documented, abs=0.01 + 3 * math.sqrt(documented * (1 - documented) / 800))


@pytest.mark.parametrize("apart", [0.0, 2.0])
def test_the_probability_of_improvement_is_covered_with_three_seeds_where_one_variant_wins_every_time(apart):
    truth = stats.norm.cdf(apart / math.sqrt(2.0))
    draw = lambda rng: probability_of_improvement(rng.normal(apart, 1.0, 3), rng.normal(size=3))  # noqa: E731
    assert 0.87 < coverage(draw, truth, 500) < 0.99


# -- two variants ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(3, 3), (4, 7), (10, 5)])
def test_the_probability_of_improvement_is_mann_and_whitneys(sizes):
    rng = np.random.default_rng(sum(sizes))
    x, y = (rng.integers(6, size=(n, 2)).astype(float) for n in sizes)  # with ties
    u = [stats.mannwhitneyu(x[:, i], y[:, i]).statistic / math.prod(sizes) for i in (0, 1)]
    assert probability_of_improvement(x, y).value == pytest.approx(np.mean(u))
    one = probability_of_improvement(x[:, 0], y[:, 0])
    assert one.value == pytest.approx(u[0])
    # Newcombe's method 5 on a grid: n* = m* = (m + n) / 2 - 1 in Hanley and McNeil's variance.
    p, other = np.linspace(1e-6, 1 - 1e-6, 400_001), sum(sizes) / 2 - 1
    variance = p * (1 - p) * (1 + other * (1 - p) / (2 - p) + other * p / (1 + p)) / math.prod(sizes)
    inside = p[np.abs(p - u[0]) <= stats.norm.ppf(0.975) * np.sqrt(variance)]
    assert (one.low, one.high) == pytest.approx((inside[0], inside[-1]), abs=1e-4)


def test_the_probability_of_improvement_mirrors_where_variants_change_places():
    x, y = np.random.default_rng(3).normal(size=(2, 6))
    there, back = probability_of_improvement(x, y), probability_of_improvement(y, x)
    assert (back.value, back.low, back.high) == pytest.approx((1 - there.value, 1 - there.high, 1 - there.low))


def test_winning_three_times_of_three_is_no_proof():
    found = probability_of_improvement([4.0, 5.0, 6.0], [1.0, 2.0, 3.0])
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0.5 < found.low < 0.51
    lost = probability_of_improvement([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    assert (lost.value, lost.low, lost.high) == pytest.approx((0.0, 0.0, 1.0 - found.low))


@pytest.mark.parametrize(("wins", "n"), [(3, 3), (2, 5), (0, 4), (9, 12)])
def test_paired_the_interval_is_wilsons(wins, n):
    y = np.random.default_rng(n).normal(size=n)
    x = y + np.where(np.arange(n) < wins, 1.0, -1.0)
    wilson = stats.binomtest(wins, n).proportion_ci(0.95, "wilson")
    found = probability_of_improvement(x, y, paired=True)
    assert (found.value, found.low, found.high) == pytest.approx((wins / n, wilson.low, wilson.high), abs=1e-9)


def test_paired_runs_of_one_seed_meet_and_ties_are_halves():
    found = probability_of_improvement([1.0, 5.0, 3.0, NAN], [0.0, 5.0, 4.0, 1.0], paired=True)
    assert (found.value, found.n, found.failed) == (0.5, 3, 1)


def test_differences_are_of_shared_seeds_only():
    rng = np.random.default_rng(1)
    x = dict(enumerate(rng.normal(10.0, 5.0, 8)))
    y = {seed: x.get(seed, 0.0) - 1.0 + rng.normal(0.0, 0.1) for seed in range(3, 12)}
    shared = range(3, 8)
    expected = stats.ttest_rel([x[s] for s in shared], [y[s] for s in shared]).confidence_interval()
    found = paired_difference(x, y)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.n, found.failed) == (5, 0)
    assert paired_difference(x, y | {4: NAN}).failed == 1
    both_infinite = paired_difference({0: math.inf, 1: 1.0}, {0: math.inf, 1: 0.0})
    assert (both_infinite.value, both_infinite.n, both_infinite.failed) == (1.0, 1, 1)


# -- profiles, drift ------------------------------------------------------------------------------


def test_a_profile_is_the_share_of_runs_above_each_threshold():
    scores = np.random.default_rng(2).normal(size=(6, 2))
    profile = performance_profile(scores, [-9.0, 0.0, 0.5, 9.0])
    above = [[sum(x > at for x in column) for column in scores.T] for at in profile.thresholds]
    assert profile.value == pytest.approx([(a + b) / 12 for a, b in above])
    wilson = [stats.binomtest(sum(counts), 12).proportion_ci(0.95, "wilson") for counts in above]
    assert profile.low == pytest.approx([w.low for w in wilson], abs=1e-9)
    assert profile.high == pytest.approx([w.high for w in wilson], abs=1e-9)
    assert np.isnan(performance_profile(scores[:2], [0.0]).low).all()


def test_drift_of_a_run():
    assert share_over([0.01, 0.03, 0.02], 0.02) == pytest.approx(1 / 3)
    assert share_over([0.01, 0.03], [0.005, 0.04]) == 0.5
    assert kl_per_return([0.1, 0.2, 0.3], [NAN, 10.0, 40.0]) == pytest.approx(0.6 / 30)
    assert kl_per_return([0.1, 0.2], [40.0, 10.0]) == kl_per_return([0.1], [NAN]) == math.inf


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: student([[1.0]]), r"scores of shape \(1, 1\); allowed: \[n_seeds\]"),
        (lambda: student([1.0], 95), r"confidence = 95; allowed: a number in \(0, 1\)"),
        (lambda: interval_of(mean, 1.0), r"scores of shape \(\); allowed: \[n_seeds\] or \[n_seeds, n_tasks\]"),
        (lambda: interval_of(mean, [1.0], resamples=0), "resamples = 0; allowed: an integer >= 1"),
        (lambda: performance_profile([1.0], 0.5), r"thresholds of shape \(\); allowed: \[n_thresholds\]"),
        (
            lambda: probability_of_improvement([[1.0, 2.0]], [1.0]),
            r"x of shape \(1, 2\) and y of shape \(1,\); allowed: as many tasks in both",
        ),
        (
            lambda: probability_of_improvement([1.0, 2.0], [1.0], paired=True),
            r"x of shape \(2,\) and y of shape \(1,\); allowed: the same seeds and tasks in both",
        ),
        (
            lambda: paired_difference({0: 1.0}, {1: 1.0}),
            r"seeds of x = \[0\], of y = \[1\]; allowed: at least one that both have",
        ),
    ],
)
def test_what_is_no_scores_is_refused_in_one_line(call, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        call()
