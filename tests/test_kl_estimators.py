"""Sample estimators of KL against Schulman's closed forms, a deterministic sample and Monte Carlo."""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from klrl.kl import KLEstimate, entropy, estimate_kl, kl_divergence
from klrl.kl.estimators import kl_samples
from klrl.policy.distributions import Categorical, DiagGaussian

ESTIMATORS = ("k1", "k2", "k3")
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
#        as Cov(r, log r) = mu^2.
# Divided by KL these are the ratios of Schulman (2020), "Approximating KL Divergence".
RELATIVE_BIAS = {"k1": lambda mu: 0.0, "k2": lambda mu: mu**2 / 4, "k3": lambda mu: 0.0}
RELATIVE_DEVIATION = {
    "k1": lambda mu: 2 / mu,
    "k2": lambda mu: math.sqrt(2 + mu**2),
    "k3": lambda mu: 2 * math.sqrt(math.exp(mu**2) - 1 - mu**2) / mu**2,
}


@MU
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_bias_and_deviation_are_those_schulman_derived(estimator, mu):
    kl, found = mu**2 / 2, estimate_kl(*two_normals(mu), estimator)
    assert found.n == 1_000_000
    assert found.value / kl == pytest.approx(1.0 + RELATIVE_BIAS[estimator](mu), rel=1e-4)
    assert found.stderr * found.n**0.5 / kl == pytest.approx(RELATIVE_DEVIATION[estimator](mu), rel=3e-3)


def policies():
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    return [
        (Categorical(x[0]), Categorical(x[0] + 0.3 * x[1])),
        (DiagGaussian(x[0], 0.3 * x[1]), DiagGaussian(x[0] + 0.2 * x[2], 0.3 * x[1] + 0.1 * x[3])),
    ]


@pytest.mark.parametrize("estimator", ["k1", "k3"])
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
    assert isinstance(found, KLEstimate)
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
        (torch.zeros(2), torch.zeros(3), "k3", r"shapes \[2\] and \[3\]; allowed: one shape"),
        (torch.zeros(2, 1), torch.zeros(2), "k3", "allowed: one shape, not empty"),
        (torch.zeros(0), torch.zeros(0), "k3", "not empty"),
        (torch.zeros(2), torch.zeros(2), "k4", "^estimator = 'k4'; allowed: k1, k2, k3$"),
    ],
)
def test_wrong_samples_and_unknown_estimators_are_refused_in_one_line(log_p, log_q, estimator, text):
    with pytest.raises(ValueError, match=text) as error:
        estimate_kl(log_p, log_q, estimator)
    assert "\n" not in str(error.value)
