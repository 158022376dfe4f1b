"""Sample estimators of KL against Schulman's closed forms, quadrature, enumeration of all samples and Monte Carlo."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, special, stats

from klrl.kl import Estimate, entropy, estimate_kl, kl_divergence
from klrl.kl.estimators import kl_samples
from klrl.policy.distributions import Categorical, DiagGaussian

pytestmark = pytest.mark.filterwarnings("ignore::klrl.kl.DoubtfulEstimateWarning")  # few samples suffice here

ESTIMATORS = ("k1", "k2", "k3", "optimal")
MU = pytest.mark.parametrize("mu", [0.1, 0.5, 1.0])


def two_normals(mu, n=1_000_000):
    """log p and log q of p = N(0, 1), q = N(mu, 1) at n equally probable points of p: quadrature by quantiles."""
    x = special.ndtri((np.arange(n) + 0.5) / n)
    return torch.tensor(stats.norm.logpdf(x)), torch.tensor(stats.norm.logpdf(x, mu))


# Samples x from p = N(0, 1), q = N(mu, 1): KL = mu^2 / 2 and log r = log q - log p = mu x - mu^2 / 2, so that
#   k1 = -log r has mean mu^2 / 2 = KL and standard deviation mu;
#   k2 = (log r)^2 / 2 has mean (mu^2 + mu^4 / 4) / 2 = KL (1 + mu^2 / 4);
#        variance (2 mu^4 + mu^6) / 4, as Var(y^2) = 2 s^4 + 4 m^2 s^2 for y = N(m, s^2);
#   k3 = r - 1 - log r has mean KL, variance E r^2 - 1 - 2 Cov(r, log r) + mu^2 = e^{mu^2} - 1 - mu^2,
#        as Cov(r, log r) = mu^2;
#   k_alpha = -log r + alpha (r - 1) has its least variance mu^2 - mu^4 / (e^{mu^2} - 1) at mu^2 / (e^{mu^2} - 1).
# Divided by KL these are the ratios of Schulman (2020), "Approximating KL Divergence".
RELATIVE_BIAS = {"k1": lambda mu: 0.0, "k2": lambda mu: mu**2 / 4, "k3": lambda mu: 0.0, "optimal": lambda mu: 0.0}
RELATIVE_DEVIATION = {
    "k1": lambda mu: 2 / mu,
    "k2": lambda mu: math.sqrt(2 + mu**2),
    "k3": lambda mu: 2 * math.sqrt(math.exp(mu**2) - 1 - mu**2) / mu**2,
    "optimal": lambda mu: 2 * math.sqrt(mu**2 - mu**4 / math.expm1(mu**2)) / mu**2,
}
# KL: standard deviations of k1, k2, k3 and of the optimal control variate, over KL.
TABLE = {
    0.005: (20.0, 1.41774, 1.41657, 1.413),
    0.02: (10.0, 1.428, 1.424, 1.409),
    0.1: (4.472, 1.483, 1.463, 1.390),
    0.5: (2.0, 1.73205, 1.69503, 1.293),
    0.628: (1.785, 1.804, 1.784, 1.262),
    1.0: (1.414, 2.0, 2.095, 1.172),
    2.0: (1.0, 2.449, 3.52, 0.962),
}


@pytest.mark.parametrize("kl", TABLE)
def test_schulmans_table_by_closed_form_and_by_quadrature(kl):
    mu = math.sqrt(2 * kl)
    for estimator, printed in zip(("k1", "k2", "k3", "optimal"), TABLE[kl], strict=True):
        assert RELATIVE_DEVIATION[estimator](mu) == pytest.approx(printed, abs=6e-4 if printed < 3 else 5e-3)
    x = np.linspace(-12, 16, 4001)
    density, log_ratio = stats.norm.pdf(x), torch.tensor(mu * x - mu**2 / 2)
    for estimator in ("k1", "k2", "k3"):
        values = kl_samples(log_ratio, estimator).numpy()
        mean, square = (integrate.trapezoid(density * values**k, x) for k in (1, 2))
        assert mean / kl == pytest.approx(1 + RELATIVE_BIAS[estimator](mu), rel=1e-10)
        assert math.sqrt(square - mean**2) / kl == pytest.approx(RELATIVE_DEVIATION[estimator](mu), rel=1e-9)


@MU
def test_bias_and_deviation_are_those_schulman_derived(mu):
    kl, samples = mu**2 / 2, two_normals(mu)
    for estimator in ESTIMATORS:
        found = estimate_kl(*samples, estimator)
        assert found.n == 1_000_000
        assert found.value / kl == pytest.approx(1.0 + RELATIVE_BIAS[estimator](mu), rel=1e-4), estimator
        deviation = found.stderr * found.n**0.5 / kl
        assert deviation == pytest.approx(RELATIVE_DEVIATION[estimator](mu), rel=3e-3), estimator


@pytest.mark.parametrize("mu", [0.1, 1.0])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_schulmans_table_by_sampling(estimator, mu):
    kl, blocks, n = mu**2 / 2, 100, 10_000
    x = torch.randn(blocks, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = [estimate_kl(torch.zeros(n), mu * row - mu**2 / 2, estimator) for row in x]
    means = np.array([e.value for e in found]) / kl
    variances = np.array([e.stderr**2 * n for e in found]) / kl**2
    for sample, expected in (
        (means, 1 + RELATIVE_BIAS[estimator](mu)),
        (variances, RELATIVE_DEVIATION[estimator](mu) ** 2),
    ):
        assert abs(sample.mean() - expected) <= 3 * sample.std(ddof=1) / blocks**0.5
    # The standard error of one block is the spread over blocks: the standard deviation of 100 has 7 % of its own.
    assert means.std(ddof=1) == pytest.approx(RELATIVE_DEVIATION[estimator](mu) / n**0.5, rel=3 * 0.071)


def test_k3_beats_k1_up_to_a_kl_of_0628():
    # sd(k1) = sd(k3) where e^{2 KL} = 1 + 4 KL.
    crossing = optimize.brentq(lambda kl: math.exp(2 * kl) - 1 - 4 * kl, 0.1, 2)
    assert crossing == pytest.approx(0.628, abs=5e-4)
    for kl, k3_is_better in ((crossing - 0.05, True), (crossing + 0.05, False)):
        samples = two_normals(math.sqrt(2 * kl))
        assert (estimate_kl(*samples, "k3").stderr < estimate_kl(*samples, "k1").stderr) is k3_is_better


def k3_second_moment(sigma, reach):
    """E_p[k3^2] for p = N(0, 1), q = N(0, sigma^2) by quadrature over |x| < reach."""
    x = np.linspace(-reach, reach, 200_001)
    k3 = kl_samples(torch.tensor(stats.norm.logpdf(x, 0, sigma) - stats.norm.logpdf(x)), "k3").numpy()
    return integrate.trapezoid(np.exp(stats.norm.logpdf(x) + 2 * np.log(k3)), x)


@pytest.mark.parametrize("sigma", [1.2, 1.3, 1.4])
def test_the_variance_of_k3_is_finite_below_sqrt_two(sigma):
    # E r^2 = 1 / (sigma sqrt(2 - sigma^2)); log r = -log sigma + c x^2 with c = (1 - 1 / sigma^2) / 2, so that
    # Var(log r) = 2 c^2, Cov(r, log r) = E_q log r - E_p log r = c (sigma^2 - 1), KL = log sigma - c.
    c = (1 - sigma**-2) / 2
    variance = 1 / (sigma * math.sqrt(2 - sigma**2)) - 1 - 2 * c * (sigma**2 - 1) + 2 * c**2
    expected = variance + (math.log(sigma) - c) ** 2
    assert k3_second_moment(sigma, 45.0) == pytest.approx(expected, rel=1e-6)


def test_the_variance_of_k3_is_infinite_from_sqrt_two_on():
    # At sqrt(2) the integrand tends to a constant, beyond it grows: twice the reach is at least twice the integral.
    for sigma in (math.sqrt(2), 1.5):
        assert k3_second_moment(sigma, 40.0) > 1.9 * k3_second_moment(sigma, 20.0)


P, Q, S = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6]), np.array([0.25, 0.6, 0.15])
HOLE = np.array([0.7, 0.3, 0.0])


def logs(x):
    with np.errstate(divide="ignore"):
        return torch.tensor(np.log(x))


def enumerated(p, q, s, estimator, n, **options):
    """All estimates from n samples drawn from s, with their probabilities."""
    log_p, log_q, log_s = logs(p), logs(q), logs(s)
    for drawn in itertools.product(np.flatnonzero(s), repeat=n):
        x = list(drawn)
        yield s[x].prod(), estimate_kl(log_p[x], log_q[x], estimator, log_sampler=log_s[x], **options)


def expected_value(p, q, s, estimator, n=1, **options):
    """E[estimate from n samples] by enumeration of all of them, drawn from s."""
    return sum(probability * found.value for probability, found in enumerated(p, q, s, estimator, n, **options))


@pytest.mark.parametrize("estimator", ["k1", "k3", "optimal"])
@pytest.mark.parametrize(
    ("p", "q", "s"), [(P, Q, P), (P, Q, S), (P, Q, Q), (HOLE, Q, S), (HOLE, HOLE[[1, 0, 2]], S)],
    ids=["from p", "from s", "from q", "p has a hole", "p and q have a hole"],
)  # fmt: skip
@pytest.mark.parametrize("n", [1, 2, 5])
def test_every_unbiased_form_has_the_exact_kl_as_its_expectation(p, q, s, estimator, n):
    exact = special.rel_entr(p, q).sum()
    assert expected_value(p, q, s, estimator, n) == pytest.approx(exact, rel=1e-12)


def test_k2_is_biased_and_importance_weights_keep_its_bias():
    expected = (P * np.log(Q / P) ** 2 / 2).sum()
    assert expected_value(P, Q, P, "k2") == pytest.approx(expected, rel=1e-12)
    assert expected_value(P, Q, S, "k2") == pytest.approx(expected, rel=1e-12)


def test_k3_misses_the_mass_that_q_has_where_no_sample_falls():
    exact = special.rel_entr(HOLE, Q).sum()
    for estimator, missing in (("k1", 0.0), ("k3", Q[2])):
        assert expected_value(HOLE, Q, HOLE, estimator) == pytest.approx(exact - missing, rel=1e-12)


def test_samples_from_q_give_w_log_w_and_its_bregman_form():
    w = P / Q
    for estimator, expected in (("k1", w * np.log(w)), ("k3", w * np.log(w) - (w - 1))):
        found = [
            estimate_kl(logs(P)[i], logs(Q)[i], estimator, log_sampler=logs(Q)[i]).value for i in range(3)
        ]  # fmt: skip
        assert found == pytest.approx(expected, rel=1e-12)
    assert (w * np.log(w) - (w - 1) >= 0).all()


def test_dividing_by_the_mean_weight_has_a_bias_of_order_one_over_n():
    exact = special.rel_entr(P, Q).sum()
    bias = [expected_value(P, Q, S, "k1", n, self_normalized=True) - exact for n in (3, 6)]
    assert abs(bias[1]) < 0.7 * abs(bias[0])
    # n = 1: the weight cancels, what is left is the expectation of k1 under s.
    assert expected_value(P, Q, S, "k1", 1, self_normalized=True) == pytest.approx((S * np.log(P / Q)).sum(), rel=1e-12)


def test_the_halves_of_the_optimal_estimator_keep_clusters_whole():
    # Every draw counted twice, as one cluster: alpha must not come from a sample's own twin.
    total = 0.0
    for drawn in itertools.product(range(3), repeat=4):
        x = [i for i in drawn for _ in range(2)]
        found = estimate_kl(logs(P)[x], logs(Q)[x], "optimal", clusters=torch.arange(8) // 2)
        total += P[list(drawn)].prod() * found.value
    assert total == pytest.approx(special.rel_entr(P, Q).sum(), rel=1e-12)


def draws(s, sets, n, seed=0):
    return torch.tensor(np.random.default_rng(seed).choice(len(s), size=(sets, n), p=s))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_squared_standard_error_is_on_average_the_variance(estimator):
    weights, found = zip(*enumerated(P, Q, S, estimator, n=4), strict=True)
    values, errors = np.array([(e.value, e.stderr) for e in found]).T
    variance = np.average(values**2, weights=weights) - np.average(values, weights=weights) ** 2
    assert np.average(errors**2, weights=weights) == pytest.approx(variance, rel=1e-10)


# Where a mean weight or an optimal control variate is estimated, too, that holds of many samples only.
@pytest.mark.parametrize(
    ("estimator", "self_normalized"), [("k1", True), ("k2", True), ("k3", True), ("optimal", True), ("optimal", False)]
)
def test_the_standard_error_is_the_spread_over_many_samples(estimator, self_normalized):
    sets, n = 750, 200
    log_p, log_q, log_s = logs(P), logs(Q), logs(S)
    found = [
        estimate_kl(log_p[x], log_q[x], estimator, log_sampler=log_s[x], self_normalized=self_normalized)
        for x in draws(S, sets, n)
    ]
    spread = np.std([e.value for e in found], ddof=1)
    # The relative standard error of a standard deviation is 1 / sqrt(2 sets) = 2.6 %; 1 / n is the estimate's own bias.
    typical = math.sqrt(np.mean([e.stderr**2 for e in found]))
    assert typical == pytest.approx(spread, rel=2.1 / math.sqrt(2 * sets) + 3 / n)


def test_the_optimal_estimator_has_the_least_standard_error():
    samples = two_normals(1.0, 10_000)
    best = estimate_kl(*samples, "optimal").stderr
    assert all(best < estimate_kl(*samples, estimator).stderr for estimator in ("k1", "k3"))


def test_the_cluster_standard_error_is_the_spread_over_many_clustered_samples():
    # 40 episodes of 1 ... 19 samples that share a random effect; k1 = log p - log q is the sample itself.
    rng, lengths = np.random.default_rng(0), np.arange(40) % 19 + 1
    labels = torch.tensor(np.repeat(np.arange(40) * 7 - 50, lengths))
    sets = 1000
    effect = rng.normal(size=(sets, 40)).repeat(lengths, axis=1)
    x = torch.tensor(2.0 + effect + 0.5 * rng.normal(size=effect.shape))
    clustered = [estimate_kl(row, torch.zeros_like(row), "k1", clusters=labels) for row in x]
    plain = [estimate_kl(row, torch.zeros_like(row), "k1") for row in x[:100]]
    # Var(mean) = (sum lengths^2 + 0.25 sum lengths) / n^2
    n = lengths.sum()
    exact = math.sqrt((lengths**2).sum() + 0.25 * n) / n
    assert np.std([e.value for e in clustered], ddof=1) == pytest.approx(exact, rel=2.1 / math.sqrt(2 * sets))
    # With the residuals' own mean taken out, the expectation is off by a share of order 1 / 40.
    assert math.sqrt(np.mean([e.stderr**2 for e in clustered])) == pytest.approx(exact, rel=0.04)
    assert math.sqrt(np.mean([e.stderr**2 for e in plain])) < 0.4 * exact


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_clusters_of_one_sample_give_the_plain_standard_error(estimator):
    log_p, log_q = two_normals(0.5, 100)
    plain = estimate_kl(log_p, log_q, estimator)
    found = estimate_kl(log_p, log_q, estimator, clusters=torch.arange(100).flip(0))
    assert found.value == plain.value
    assert found.stderr == pytest.approx(plain.stderr, rel=1e-12)


def test_one_cluster_has_no_standard_error():
    found = estimate_kl(torch.zeros(2, 2), torch.ones(2, 2), clusters=torch.zeros(2, 2, dtype=torch.int32))
    assert math.isnan(found.stderr)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "optimal"])
@pytest.mark.parametrize("log_sampler", [None, torch.zeros(3)])
def test_a_sample_that_q_cannot_draw_makes_the_estimate_infinite(estimator, log_sampler):
    log_p, log_q = torch.tensor([-1.0, -800.0, -1.0]), torch.tensor([-1.0, -math.inf, -2.0])
    found = estimate_kl(log_p, log_q, estimator, log_sampler=log_sampler)
    assert (found.value, found.stderr) == (math.inf, math.inf)


def test_the_optimal_estimator_is_k1_where_the_ratio_does_not_vary():
    for n in (1, 2, 1000):
        found = estimate_kl(torch.full((n,), -1.0), torch.full((n,), -1.3), "optimal")
        assert found.value == pytest.approx(0.3, rel=1e-6)
    found = estimate_kl(torch.zeros(10), torch.zeros(10), "optimal")
    assert (found.value, found.stderr, found.n) == (0.0, 0.0, 10)


def test_ratios_beyond_float64_are_infinite_only_where_they_have_to_be():
    log_p, log_q = torch.tensor([-900.0, -1.0, -1.0, -1.1]), torch.tensor([-1.0, -1.1, -0.9, -1.0])
    assert estimate_kl(log_p, log_q, "k3").value == math.inf
    assert math.isfinite(estimate_kl(log_p, log_q, "optimal").value)
    # Drawn from q, every term is at most 1 + w log w: here 1 from the first sample and next to nothing from the rest.
    found = estimate_kl(log_p, log_q, "k3", log_sampler=log_q)
    assert found.value == pytest.approx(0.25 * (1 + 3 * 0.1**2 / 2), rel=1e-3)


def test_float32_log_probabilities_are_computed_in_float64():
    log_p = torch.tensor([-0.3, -1.7, -20.0])
    log_q = log_p + torch.tensor([1e-3, -1e-3, 0.5])
    assert estimate_kl(log_p, log_q) == estimate_kl(log_p.double(), log_q.double())


def test_estimating_needs_no_graph():
    log_p = torch.zeros(3, requires_grad=True)
    assert estimate_kl(log_p, log_p - 1.0, "k1", log_sampler=log_p).value == 1.0


def policies():
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    return [
        (Categorical(x[0]), Categorical(x[0] + 0.3 * x[1])),
        (DiagGaussian(x[0], 0.3 * x[1]), DiagGaussian(x[0] + 0.2 * x[2], 0.3 * x[1] + 0.1 * x[3])),
    ]


@pytest.mark.parametrize("estimator", ["k1", "k3", "optimal"])
@pytest.mark.parametrize(("p", "q"), policies(), ids=["categorical", "gaussian"])
def test_unbiased_estimates_lie_within_three_standard_errors_of_the_exact_kl(p, q, estimator):
    n = 100_000
    p_n, q_n = (r.map(lambda x: x.expand(n, -1)) for r in (p, q))
    action = p_n.sample(torch.Generator().manual_seed(0))
    found = estimate_kl(p_n.log_prob(action), q_n.log_prob(action), estimator)
    exact = kl_divergence(p, q).item()
    assert abs(found.value - exact) <= 3.0 * found.stderr
    assert found.stderr < 0.2 * exact


def test_k3_is_the_default_and_the_standard_error_is_the_one_of_a_mean():
    log_p, log_q = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(2.0), 0.0]])
    # k3 = 2 - 1 - log 2 and 0; their mean is half of that, its standard error half of their difference.
    expected = (1.0 - math.log(2.0)) / 2
    found = estimate_kl(log_p, log_q)
    assert (found.value, found.stderr, found.n) == (pytest.approx(expected), pytest.approx(expected), 2)


def test_one_sample_has_a_value_and_no_standard_error():
    found = estimate_kl(torch.tensor(-1.0), torch.tensor(-1.5), "k1")
    assert isinstance(found, Estimate)
    assert (found.value, found.n) == (0.5, 1)
    assert math.isnan(found.stderr)


@pytest.mark.parametrize("log_ratio", [1e-4, -1e-4, 1e-3, 0.05, -2.0, 20.0])
def test_float32_k3_keeps_its_digits_for_small_ratios(log_ratio):
    x = np.longdouble(np.float32(log_ratio))
    k3 = kl_samples(torch.tensor(log_ratio), "k3")
    assert k3.dtype == torch.float32
    assert k3.item() == pytest.approx(float(np.expm1(x) - x), rel=1e-5)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_k2_and_k3_are_never_negative(estimator):
    x = torch.linspace(-80, 80, 10_001)
    assert (kl_samples(x, estimator) >= 0).all()
    assert kl_samples(torch.zeros(3), estimator).tolist() == [0.0, 0.0, 0.0]


def test_estimating_against_a_constant_gives_the_negative_entropy():
    p = Categorical(torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    p_n = p.map(lambda x: x.expand(50_000, -1))
    log_p = p_n.log_prob(p_n.sample(torch.Generator().manual_seed(0)))
    found = estimate_kl(log_p, torch.zeros_like(log_p), "k1")
    assert abs(found.value + entropy(p).item()) <= 3.0 * found.stderr


@pytest.mark.parametrize(
    ("log_p", "log_q", "estimator", "text"),
    [
        (torch.zeros(2), torch.zeros(3), "k3", r"log_p \[2\], log_q \[3\]; allowed: one shape"),
        (torch.zeros(2, 1), torch.zeros(2), "k3", "allowed: one shape, not empty"),
        (torch.zeros(0), torch.zeros(0), "k3", "not empty"),
        (torch.zeros(2), torch.zeros(2), "k4", "^estimator = 'k4'; allowed: k1, k2, k3, optimal$"),
        (torch.tensor([0.0, math.nan]), torch.zeros(2), "k1", "^log_p = nan at a sample; allowed: numbers < inf$"),
        (torch.zeros(2), torch.tensor([0.0, math.inf]), "k1", "^log_q = inf at a sample; allowed: numbers < inf$"),
        (torch.tensor([0.0, -math.inf]), torch.zeros(2), "k1", "^log_p = -inf at a sample drawn from it; allowed: "),
    ],
)
def test_wrong_samples_and_unknown_estimators_are_refused_in_one_line(log_p, log_q, estimator, text):
    with pytest.raises(ValueError, match=text) as error:
        estimate_kl(log_p, log_q, estimator)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"log_sampler": torch.zeros(3)}, r"log_p \[2\], log_q \[2\], log_sampler \[3\]; allowed: one shape"),
        ({"log_sampler": torch.tensor([0.0, -math.inf])}, "^log_sampler = -inf at a sample drawn from it; allowed: "),
        ({"log_sampler": torch.full((2,), -800.0)}, "^log_p - log_sampler = 800 at a sample; allowed: at most 709.8$"),
        (
            {"log_sampler": torch.full((2,), 800.0), "self_normalized": True},
            "^the sum of the weights p/s is 0; allowed",
        ),
        ({"clusters": torch.zeros(3, dtype=torch.int64)}, r"^clusters has shape \[3\]; allowed: that of log_p, \[2\]$"),
        ({"clusters": torch.zeros(2)}, "^clusters has type torch.float32; allowed: integers$"),
        ({"clusters": torch.ones(2, dtype=torch.bool)}, "^clusters has type torch.bool; allowed: integers$"),
    ],
)
def test_wrong_samplers_and_clusters_are_refused_in_one_line(options, text):
    with pytest.raises(ValueError, match=text) as error:
        estimate_kl(torch.zeros(2), torch.zeros(2), **options)
    assert "\n" not in str(error.value)


def test_arrays_are_estimated_as_tensors_are():
    log_p, log_q = np.log([0.5, 0.5, 0.2]), np.log([0.7, 0.3, 0.1])
    clusters = np.array([0, 0, 1])
    arrays = estimate_kl(log_p, log_q, clusters=clusters)
    assert arrays == estimate_kl(*(torch.from_numpy(x) for x in (log_p, log_q)), clusters=torch.from_numpy(clusters))
