"""The drift report: every metric against an independent computation in numpy."""

import itertools
import math

import numpy as np
import pytest
import torch

from klrl.kl import drift_report
from klrl.kl.drift import Drift, Probe, mean_kl
from klrl.policy.arrays import average
from klrl.policy.distributions import Categorical, DiagGaussian

N = 21  # the 95th percentile of 21 sorted numbers is the number at index 19
COMMON = {"kl", "kl_reverse", "kl_max", "kl_p95", "kl_k1", "kl_k3", "ratio_max", "ess"}


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def categorical_kl(z_p, z_q):
    p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (z_p, z_q))
    return (p * np.log(p / q)).sum(-1)


def gaussian_kl_parts(mean_p, log_std_p, mean_q, log_std_q):
    means = ((mean_p - mean_q) ** 2 / (2 * np.exp(2 * log_std_q))).sum(-1)
    covariances = (log_std_q - log_std_p + np.exp(2 * (log_std_p - log_std_q)) / 2 - 0.5).sum(-1)
    return means, covariances


def expected_common(kl, kl_reverse, log_ratio):
    w = np.exp(log_ratio)
    return {
        "drift/kl": kl.mean(),
        "drift/kl_reverse": kl_reverse.mean(),
        "drift/kl_max": kl.max(),
        "drift/kl_p95": np.sort(kl)[19],
        "drift/kl_k1": (-log_ratio).mean(),
        "drift/kl_k3": (w - 1 - log_ratio).mean(),
        "drift/ratio_max": w.max(),
        "drift/ess": w.sum() ** 2 / (w**2).sum() / N,
    }


def test_a_categorical_change_is_reported_as_numpy_computes_it():
    old, new, log_ratio = numbers(N, 5), numbers(N, 5) + 0.3 * numbers(N, 5, seed=1), 0.4 * numbers(N, seed=2)
    report = drift_report(Categorical(torch.tensor(old)), Categorical(torch.tensor(new)), torch.tensor(log_ratio))
    expected = expected_common(categorical_kl(old, new), categorical_kl(new, old), log_ratio)
    assert report == pytest.approx(expected, rel=1e-9)


def test_a_gaussian_change_is_reported_with_its_mean_part_and_its_covariance_part():
    old = [numbers(N, 3), 0.3 * numbers(N, 3, seed=1)]
    new = [old[0] + 0.2 * numbers(N, 3, seed=2), old[1] + 0.1 * numbers(N, 3, seed=3)]
    log_ratio = 0.4 * numbers(N, seed=4)
    report = drift_report(*(DiagGaussian(*map(torch.tensor, x)) for x in (old, new)), torch.tensor(log_ratio))
    means, covariances = gaussian_kl_parts(*old, *new)
    expected = expected_common(means + covariances, sum(gaussian_kl_parts(*new, *old)), log_ratio) | {
        "drift/kl_mean_part": means.mean(),
        "drift/kl_covariance_part": covariances.mean(),
    }
    assert report == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("make", [lambda x: Categorical(x), lambda x: DiagGaussian(x, 0.1 * x)], ids=["cat", "gauss"])
def test_no_change_is_reported_as_exactly_none(make):
    policy = make(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).requires_grad_())
    report = drift_report(policy.detach(), policy, torch.zeros(50))
    ones = {"drift/ratio_max", "drift/ess"}
    assert {f"drift/{name}" for name in COMMON} <= report.keys()
    assert all(value == (1.0 if name in ones else 0.0) for name, value in report.items())
    assert all(type(value) is float for value in report.values())


@pytest.mark.parametrize(("n", "states_below"), [(1, 0), (2, 1), (10, 9), (22, 20), (30, 28), (100, 95), (2048, 1945)])
def test_at_least_95_of_100_states_have_moved_no_further_than_the_percentile(n, states_below):
    # KL(N(0, 1)||N(x, 1)) = x^2 / 2: with x^2 = 2, 4, ..., 2n in any order, the KL of the states are 1, 2, ..., n.
    kl = np.random.default_rng(0).permutation(np.arange(1.0, n + 1.0))
    zero = torch.zeros(n, 1, dtype=torch.float64)
    new = DiagGaussian(torch.tensor(np.sqrt(2.0 * kl))[:, None], zero)
    p95 = drift_report(DiagGaussian(zero, zero), new, torch.zeros(n))["drift/kl_p95"]
    assert p95 == pytest.approx(states_below + 1.0, rel=1e-12)
    assert (kl <= p95 * (1 + 1e-9)).mean() >= 0.95


def test_infinite_drift_is_reported_as_infinite_and_never_as_nan():
    old = Categorical(torch.zeros(4, 2))
    new = Categorical(torch.tensor([[0.0, 0.0], [0.0, -math.inf], [0.0, -math.inf], [0.0, -math.inf]]))
    report = drift_report(old, new, torch.zeros(4))
    assert [report[f"drift/{name}"] for name in ("kl", "kl_max", "kl_p95")] == [math.inf] * 3
    # Reverse: 0 for the first state, log 2 for the three that are now certain.
    assert report["drift/kl_reverse"] == pytest.approx(0.75 * math.log(2.0))


def test_the_mean_over_states_loses_nothing_to_float32_summation():
    small = torch.full((1_000_000,), 0.1)
    assert average(small) == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_mean_kl_is_the_mean_over_states_of_the_forward_kl():
    old, new = numbers(2, 3, 5), numbers(2, 3, 5, seed=1)
    expected = categorical_kl(old, new).mean()
    assert mean_kl(Categorical(torch.tensor(old)), Categorical(torch.tensor(new))) == pytest.approx(expected, rel=1e-10)


def way(policies):
    """What is reported of a path through these policies, all at the same states."""
    drift = Drift()
    drift.probe = Probe.choose(torch.arange(float(len(policies[0].parameters[0]))), policies[0])
    return [
        drift.report(old, new, None, 0.01) | drift.since_first(lambda _, new=new: new)
        for old, new in itertools.pairwise(policies)
    ]


def test_a_straight_path_is_as_long_as_its_ends_are_apart_and_a_circle_has_no_distance():
    at = [DiagGaussian(torch.full((N, 1), 0.1 * i, dtype=torch.float64), torch.zeros(N, 1)) for i in range(101)]
    last = way(at)[-1]
    # 100 steps of a tenth of a standard deviation: KL 0.005 each, and 50 between the ends.
    assert last["drift/kl_sum"] == pytest.approx(0.5)
    assert last["drift/path_length"] == pytest.approx(10.0) == pytest.approx(math.sqrt(2 * last["drift/kl_initial"]))
    assert last["drift/straightness"] == pytest.approx(1.0)
    back = way([*at, *at[::-1]])[-1]
    assert (back["drift/path_length"], back["drift/straightness"]) == (pytest.approx(20.0), 0.0)
    assert way(at[:1] * 2)[-1]["drift/straightness"] == 1.0  # as of a first step, however small


def test_the_length_is_that_of_every_state_averaged():
    logits = [numbers(N, 5, seed=i) for i in range(4)]
    lengths = [np.sqrt(2 * categorical_kl(p, q)).mean() for p, q in itertools.pairwise(logits)]
    ends = np.sqrt(2 * categorical_kl(logits[0], logits[-1])).mean()
    reports = way([Categorical(torch.tensor(x)) for x in logits])
    assert [r["drift/path_length"] for r in reports] == pytest.approx(np.cumsum(lengths))
    assert reports[-1]["drift/straightness"] == pytest.approx(ends / sum(lengths))
