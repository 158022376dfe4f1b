"""KL from samples alone: formulas by brute force and enumeration, normals by their closed form, and the failures."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from families import seeded

from klrl.kl import DoubtfulEstimateWarning, donsker_varadhan, knn_kl

unwarned = pytest.mark.filterwarnings("ignore::klrl.kl.DoubtfulEstimateWarning")


def shifted(n, d, shift, std=1.0, seed=0, m=None):
    """Samples of N(0, I) and of N(mean, std^2 I), the mean a vector of this length."""
    g = seeded(seed)
    x = torch.randn(n, d, generator=g, dtype=torch.float64)
    return x, shift / d**0.5 + std * torch.randn(m or n, d, generator=g, dtype=torch.float64)


def normal_kl(shift, std=1.0, d=1):
    return d * (math.log(std) + 0.5 / std**2 - 0.5) + 0.5 * shift**2 / std**2


@unwarned
@pytest.mark.parametrize(("d", "k", "n", "m"), [(1, 1, 40, 60), (2, 3, 50, 30), (3, 5, 30, 30)])
def test_the_neighbours_are_those_of_a_table_of_all_distances(d, k, n, m):
    x, y = (z.numpy() for z in shifted(n, d, 0.5, m=m))
    own = np.sort(np.linalg.norm(x[:, None] - x[None], axis=-1), 1)[:, k]
    other = np.sort(np.linalg.norm(x[:, None] - y[None], axis=-1), 1)[:, k - 1]
    expected = d * np.log(other / own).mean() + np.log(m / (n - 1))
    for given in ((x, y), (torch.from_numpy(x), torch.from_numpy(y))):
        assert knn_kl(*given, k).value == pytest.approx(expected, rel=1e-12)
    if d == 1:
        assert knn_kl(x[:, 0], y[:, 0], k).value == pytest.approx(expected, rel=1e-12)


@unwarned
def test_in_few_dimensions_both_directions_are_right():
    for d, std in ((1, 1.0), (1, 1.5), (2, 1.0)):
        x, y = shifted(2_000, d, 0.5, std, seed=1)
        there, back = knn_kl(x, y), knn_kl(y, x)
        assert abs(there.value - normal_kl(0.5, std, d)) < 3.0 * there.stderr + 0.02
        assert abs(back.value - normal_kl(0.5 / std, 1 / std, d)) < 3.0 * back.stderr + 0.02
        assert (there.n, there.groups) == (2_000, 10)


@unwarned
def test_the_standard_error_is_the_spread_of_repeats():
    found = [knn_kl(*shifted(500, 1, 0.5, seed=i)) for i in range(40)]
    spread = np.std([x.value for x in found], ddof=1)
    assert 0.6 < spread / np.mean([x.stderr for x in found]) < 1.6


def test_samples_that_are_far_away_have_a_bias_and_a_warning():
    with pytest.warns(DoubtfulEstimateWarning, match=r"^knn_kl: the value has a bias in 1 dimensions: .* from all"):
        assert knn_kl(*shifted(1_000, 1, 6.0)).value < 0.5 * normal_kl(6.0)
    with pytest.warns(DoubtfulEstimateWarning, match=r"^knn_kl: .*: 20 samples; allowed for a standard error: >= 60"):
        assert math.isnan(knn_kl(*shifted(30, 1, 1.0, m=20)).stderr)


@unwarned
def test_where_samples_of_q_are_rare_there_is_a_bias_in_two_dimensions_already():
    wide = knn_kl(*reversed(shifted(1_000, 2, 0.5, 1.5, seed=1)))
    assert wide.interval()[1] < normal_kl(0.5 / 1.5, 1 / 1.5, 2)


def test_in_many_dimensions_the_bias_is_larger_than_the_interval():
    found = knn_kl(*shifted(1_000, 20, 2.0, seed=1))
    assert found.interval()[1] < normal_kl(2.0)


@unwarned
def test_the_mean_of_the_bound_is_below_the_kl_and_that_of_its_logarithm_is_not():
    p, q = np.array([0.5, 0.5]), np.array([0.8, 0.2])
    kl = float((p * np.log(p / q)).sum())
    best = np.log(p / q)

    def mean(critic, formula):
        """Over all samples of q, with one half for c, and the x that have the mean of p."""
        total = 0.0
        for y in itertools.product((0, 1), repeat=4):
            total += q[list(y)].prod() * formula(critic, np.array(y))
        return total

    def ours(critic, y):
        T = torch.from_numpy(critic)
        return donsker_varadhan(
            np.array([0.0, 0.0, 1.0, 1.0]), y.astype(float), lambda z: T[z.squeeze(-1).long()]
        ).value

    def by_hand(critic, y):
        T = critic[y]
        c = np.log(np.exp(T[::2]).mean())
        return p @ critic - c - np.exp(T[1::2] - c).mean() + 1.0

    def logarithm(critic, y):
        return p @ critic - np.log(np.exp(critic[y][1::2]).mean())

    for critic in (best, np.array([-0.4, 0.6]), best + 7.0):
        assert mean(critic, ours) == pytest.approx(mean(critic, by_hand), rel=1e-12)
        assert mean(critic, ours) < kl
    assert mean(best, logarithm) > kl


@unwarned
def test_between_normals_the_bound_is_near_their_kl():
    for critic, d, std in (("linear", 1, 1.0), ("quadratic", 1, 1.5), ("quadratic", 3, 1.0)):
        x, y = shifted(4_000, d, 0.7, std, seed=3)
        found = donsker_varadhan(x, y, critic)
        exact = normal_kl(0.7, std, d)
        assert exact - 3.0 * found.stderr - 0.05 < found.value < exact + 3.0 * found.stderr
        assert found.n == 2_000
        assert donsker_varadhan(x.numpy(), y.float().double(), critic).value == pytest.approx(found.value, abs=1e-4)
    linear = donsker_varadhan(*shifted(4_000, 1, 0.0, 1.5, seed=3), "linear")  # blind to a variance
    assert linear.value < 0.02 < normal_kl(0.0, 1.5)


def test_samples_show_no_more_than_the_logarithm_of_their_number():
    for shift in (6.0, 8.0, 16.0):
        with pytest.warns(DoubtfulEstimateWarning, match="donsker_varadhan"):
            found = donsker_varadhan(*shifted(1_000, 1, shift), "linear")
        assert found.value < math.log(500) + 1.0 + 1e-9 < normal_kl(shift)
    with pytest.warns(DoubtfulEstimateWarning, match=r"value = .* they can show at most log 500 = 6.21 nats"):
        donsker_varadhan(*shifted(1_000, 1, 40.0), lambda z: 20.0 * (z[:, 0] < 20.0))
    with pytest.warns(DoubtfulEstimateWarning, match=r"Pareto k-hat|skewness"):  # the best critic needs tails, too
        donsker_varadhan(*shifted(1_000, 1, 3.0), lambda z: 4.5 - 3.0 * z[:, 0])


def test_what_cannot_be_samples_is_refused_in_one_line():
    x, y = shifted(100, 2, 1.0)
    for of in (knn_kl, donsker_varadhan):
        with pytest.raises(ValueError, match=r"^samples have shapes \[100, 2\] and \[100, 1\]; allowed: \[n, d\]"):
            of(x, y[:, 0])
        with pytest.raises(ValueError, match=r"^y has nan; allowed: finite numbers"):
            of(x, torch.where(y == y[3, 1], math.nan, y))
    with pytest.raises(ValueError, match=r"^k = 100; allowed: 1 to 99, for 100 samples of p and 100 of q"):
        knn_kl(x, y, 100)
    with pytest.raises(ValueError, match=r"^5 or more samples are at the same place; allowed: samples of densities"):
        knn_kl((x > 0).double(), y)
    with pytest.raises(ValueError, match=r"^critic = 'cubic'; allowed: linear, quadratic, or a function"):
        donsker_varadhan(x, y, "cubic")
    with pytest.raises(ValueError, match=r"^critic gives \[50, 2\]; allowed: finite numbers, \[50\]"):
        donsker_varadhan(x, y, lambda z: z)
    with pytest.raises(ValueError, match=r"^3 samples; allowed: >= 4"):
        donsker_varadhan(x[:3], y)


def test_neither_moves_torchs_generator_nor_needs_gradients():
    x, y = (z.requires_grad_() for z in shifted(200, 1, 0.5))
    before = torch.get_rng_state()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert knn_kl(x, y).value == knn_kl(x, y).value
        assert donsker_varadhan(x, y).value == donsker_varadhan(x, y).value
    assert torch.equal(torch.get_rng_state(), before)
