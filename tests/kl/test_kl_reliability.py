"""Whether an estimate can be believed: k-hat of known tails, Student's intervals, and who is warned of what."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from torch import distributions as td

from klrl.kl import DoubtfulEstimateWarning, estimate_divergence, estimate_entropy, estimate_kl
from klrl.kl.estimators import Estimate
from klrl.kl.reliability import pareto_k, skewness, tail_size

DOUBTFUL = "the standard error cannot be trusted"


def normal(mean, std):
    return td.Normal(torch.tensor(mean).double(), torch.tensor(std).double())


def tail(x):
    return x.topk(tail_size(len(x)) + 1, 0).values


def test_khat_of_tails_whose_index_is_known():
    """P(X > x) = x^-1/k has the index k; a bounded tail a negative one, as 1 - U^2 has -2; an exponential one 0."""
    u = torch.rand(50_000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for k in (0.3, 0.7, 1.5):
        found = pareto_k(tail(u.pow(-k)))
        assert found.shape == (4,)
        torch.testing.assert_close(found, torch.full((4,), k).double(), rtol=0.0, atol=4.0 * (1.0 + k) / 670**0.5)
        assert pareto_k(tail(u[:, 0].pow(-k))).item() == pytest.approx(found[0].item())
    assert pareto_k(tail(-u.log())).abs().max() < 0.16
    assert pareto_k(tail(-u.square())).max() < -0.3
    assert pareto_k(torch.ones(101)).isnan()
    assert pareto_k(torch.rand(5)).isnan()


def test_skewness_is_scipys():
    x = torch.randn(300, generator=torch.Generator().manual_seed(0)).exp().double()
    assert skewness(x).item() == pytest.approx(stats.skew(x.numpy()))
    assert skewness(torch.ones(3)).item() == 0.0


def test_an_interval_is_students_with_the_number_of_groups():
    x = np.random.default_rng(0).normal(size=40)
    found = estimate_kl(torch.zeros(40), torch.from_numpy(-x), "k1")
    low, high = stats.t.interval(0.9, 39, x.mean(), stats.sem(x))
    assert found.interval(0.9) == pytest.approx((low, high))
    assert (found.ess, found.groups) == (40.0, 40)
    with pytest.warns(DoubtfulEstimateWarning, match="5 independent samples; allowed: >= 30"):
        clustered = estimate_kl(torch.zeros(40), torch.from_numpy(-x), "k1", clusters=torch.arange(40) % 5)
    means = x.reshape(8, 5).mean(0)
    assert clustered.interval() == pytest.approx(stats.t.interval(0.95, 4, means.mean(), stats.sem(means)))
    assert all(map(math.isnan, Estimate(1.0, math.nan, 1).interval()))
    with pytest.raises(ValueError, match=r"^level = 1.0; allowed: a number between 0 and 1$"):
        found.interval(1.0)
    states = estimate_entropy(td.Laplace(torch.zeros(3).double(), 1.0), 2000, torch.Generator().manual_seed(0))
    reach = (states.interval()[1] - states.value) / states.stderr
    assert reach.tolist() == pytest.approx([stats.t.ppf(0.975, 1999)] * 3)


def doubtful(p, q, estimator, n, sampler=None, repeats=40):
    """Shares of estimates that are warned of, and of intervals that miss the true value without a warning."""
    warned = missed = 0
    true = td.kl_divergence(p, q).item()
    torch.manual_seed(0)
    for _ in range(repeats):
        x = (sampler or p).sample((n,))
        log_s = None if sampler is None else sampler.log_prob(x)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            low, high = estimate_kl(p.log_prob(x), q.log_prob(x), estimator, log_sampler=log_s).interval()
        warned += any(issubclass(w.category, DoubtfulEstimateWarning) for w in said)
        missed += not said and not low <= true <= high
    return warned / repeats, missed / repeats


def test_estimates_that_miss_too_often_are_warned_of():
    """Rows of the table of coverages: nominal 95 % that were 13 % to 90 %."""
    near, far, one = (normal(0.1, 1.05), normal(0.3, 0.6), normal(0.0, 1.0))
    rare = [td.Categorical(torch.tensor(x).double()) for x in ([0.9989, 0.001, 0.0001], [0.9, 0.05, 0.05])]
    rows = [
        (one, near, "k3", 256), (one, far, "k1", 1000, far), (one, normal(0.0, 1.5), "k3", 1000), (one, near, "k1", 8),
        (*rare, "k1", 128), (*rare, "k3", 128), (*rare, "optimal", 128),
    ]  # fmt: skip
    for row in rows:
        assert doubtful(*row)[0] > 0.9
    for row in ((one, normal(1.0, 1.0), "k1", 256), (one, normal(0.0, 1.5), "k1", 1000)):
        warned, missed = doubtful(*row)
        assert warned < 0.1
        assert missed < 0.15  # 6 of 40 have a probability of 1 % at 5 %


def test_ratios_whose_mean_is_too_small_have_missed_a_part_of_q():
    """Without its largest samples, N(0, 1) says of N(0, 1.5) that it has less than the mass 1."""
    p, q = normal(0.0, 1.0), normal(0.0, 1.5)
    x = p.icdf((torch.arange(1000).double() + 0.5) / 1000.0)
    for cut, said in ((4.0, False), (2.5, True)):
        inside = x[x.abs() < cut]
        z = (1.0 - stats.norm(0, 1.5).pdf(inside) / stats.norm(0, 1).pdf(inside)).mean()
        z /= stats.sem(stats.norm(0, 1.5).pdf(inside) / stats.norm(0, 1).pdf(inside))
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            estimate_kl(p.log_prob(inside), q.log_prob(inside), "optimal")
        text = f"mean {z:.2g} standard errors below 1, their expectation"
        assert any(text in str(w.message) for w in found) == said == (z > 2.0)
    unseen = torch.zeros(200)  # p is certain of what q gives 0.9
    with pytest.warns(DoubtfulEstimateWarning, match="have a mean without spread below 1, their expectation"):
        estimate_kl(unseen, unseen + math.log(0.9), "k3")


def test_equal_distributions_are_not_doubted():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = estimate_kl(torch.zeros(100), torch.zeros(100))
    assert (found.value, found.stderr) == (0.0, 0.0)


def test_infinite_divergences_between_densities_are_warned_of():
    one = normal(0.0, 1.0)
    for p in (td.Cauchy(0.0, 1.0), td.StudentT(2.0)):
        with pytest.warns(DoubtfulEstimateWarning, match=rf"estimate_divergence: {DOUBTFUL}: Pareto k-hat .* no mean"):
            found = estimate_divergence(p, one, generator=torch.Generator().manual_seed(0))
        assert found.khat > 0.7
    found = estimate_divergence(one, normal(0.1, 1.05), generator=torch.Generator().manual_seed(0))
    assert found.khat < 0.5
