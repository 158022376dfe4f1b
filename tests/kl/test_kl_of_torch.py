"""Families of torch.distributions that have no record: their KL and entropy against 30-digit integrals and sums."""

import math

import mpmath as mp
import pytest
import torch
from torch import distributions as td

from klrl.kl import cross_entropy, entropy, jeffreys, kl_divergence, kl_per_dimension, reverse_kl
from klrl.policy.distributions import NoClosedForm


def bernoulli(k, n, p):
    return mp.log(mp.binomial(n, k)) + k * mp.log(p) + (n - k) * mp.log(1 - p)


def continuous_bernoulli(x, p):
    normaliser = mp.mpf(2) if p == 0.5 else 2 * mp.atanh(1 - 2 * p) / (1 - 2 * p)
    return x * mp.log(p) + (1 - x) * mp.log(1 - p) + mp.log(normaliser)


def gumbel(x, m, s):
    z = (x - m) / s
    return -z - mp.exp(-z) - mp.log(s)


def gamma(x, a, r):
    return a * mp.log(r) - mp.loggamma(a) + (a - 1) * mp.log(x) - r * x


KINKED = "KINKED"
LINE, HALF, UNIT = [-mp.inf, -3, 0, 3, mp.inf], [0, 1, 4, mp.inf], [0, 0.5, 1]
GUMBEL = [-4, -1, 0, 3, mp.inf]  # below, its density is less than 1e-100
# class, numbers of p and q, log-density of a point, points between which it is integrated (counts: summed)
ROWS = {
    "Exponential": (td.Exponential, (0.75,), (1.9,), lambda x, r: mp.log(r) - r * x, HALF),
    "Gamma": (td.Gamma, (2.5, 0.75), (1.25, 2.0), gamma, HALF),
    "InverseGamma": (td.InverseGamma, (2.5, 0.75), (1.25, 2.0), lambda x, a, r: gamma(1 / x, a, r) - 2 * mp.log(x),
                     HALF),
    "Laplace": (td.Laplace, (0.25, 0.75), (-1.0, 2.0), lambda x, m, b: -abs(x - m) / b - mp.log(2 * b),
                KINKED),
    "Uniform": (td.Uniform, (0.0, 1.0), (-1.0, 2.5), lambda x, a, b: -mp.log(b - a), UNIT),
    "Gumbel": (td.Gumbel, (0.25, 0.75), (-0.5, 1.5), gumbel, GUMBEL),
    "Weibull": (td.Weibull, (1.25, 0.75), (0.5, 1.5),
                lambda x, s, k: mp.log(k / s) + (k - 1) * mp.log(x / s) - (x / s) ** k, HALF),
    "Pareto": (td.Pareto, (2.0, 1.5), (1.0, 0.625), lambda x, m, a: mp.log(a) + a * mp.log(m) - (a + 1) * mp.log(x),
               [2, 4, mp.inf]),
    "HalfNormal": (td.HalfNormal, (2.0,), (1.0,),
                   lambda x, s: mp.log(2 / mp.pi) / 2 - mp.log(s) - (x / s) ** 2 / 2, HALF),
    "HalfCauchy": (td.HalfCauchy, (2.0,), (1.0,), lambda x, s: mp.log(2 / mp.pi / s) - mp.log1p((x / s) ** 2), HALF),
    "Cauchy": (td.Cauchy, (2.0, 0.5), (1.0, 2.0),
               lambda x, m, s: -mp.log(mp.pi * s) - mp.log1p(((x - m) / s) ** 2), LINE),
    "LogNormal": (td.LogNormal, (0.5, 0.75), (-0.25, 1.5),
                  lambda x, m, s: -((mp.log(x) - m) / s) ** 2 / 2 - mp.log(x * s) - mp.log(2 * mp.pi) / 2, HALF),
    "ContinuousBernoulli": (td.ContinuousBernoulli, (0.3125,), (0.75,), continuous_bernoulli, UNIT),
    "Poisson": (td.Poisson, (2.0,), (3.5,), lambda k, r: k * mp.log(r) - r - mp.loggamma(k + 1), range(80)),
    "Geometric": (td.Geometric, (0.375,), (0.625,), lambda k, p: mp.log(p) + k * mp.log(1 - p), range(200)),
    "Binomial": (td.Binomial, (5, 0.3125), (5, 0.625), bernoulli, range(6)),
    "NegativeBinomial": (td.NegativeBinomial, (5, 0.3125), (5, 0.625),
                         lambda k, r, p: mp.log(mp.binomial(k + r - 1, k)) + r * mp.log(1 - p) + k * mp.log(p),
                         range(200)),
}  # fmt: skip
NORMAL = (
    td.Normal,
    (0.25, 0.75),
    (-0.5, 1.5),
    lambda x, m, s: -(((x - m) / s) ** 2) / 2 - mp.log(s * mp.sqrt(2 * mp.pi)),
    LINE,
)
BETA = (
    td.Beta,
    (2.5, 1.25),
    (1.5, 3.0),
    lambda x, a, b: (a - 1) * mp.log(x) + (b - 1) * mp.log(1 - x) - mp.log(mp.beta(a, b)),
    UNIT,
)


def made(cls, numbers, dtype=torch.float64):
    values = [torch.tensor(x, dtype=dtype) for x in numbers]
    return cls(int(numbers[0]), *values[1:]) if cls in (td.Binomial, td.NegativeBinomial) else cls(*values)


def mean(log_p, of, where):
    """E_p of a function, to 25 digits or so."""
    with mp.workdps(30):
        if isinstance(where, range):
            return mp.fsum(mp.exp(log_p(mp.mpf(k))) * of(mp.mpf(k)) for k in where)
        return mp.quad(lambda x: mp.exp(log_p(x)) * of(x), where)


def integral(log_density, a, b, where, other=None):
    if where is KINKED:  # at the locations
        where = sorted({-mp.inf, -8, a[0], b[0], 8, mp.inf})

    def log_p(x):
        return log_density(x, *map(mp.mpf, a))

    def log_q(x):
        return (other or log_density)(x, *map(mp.mpf, b))

    return float(mean(log_p, lambda x: log_p(x) - log_q(x), where))


@pytest.mark.parametrize("name", ROWS)
def test_far_apart_and_near_each_other_the_kl_is_the_integral(name):
    cls, a, b, log_density, where = ROWS[name]
    p, q = made(cls, a), made(cls, b)
    expected = integral(log_density, a, b, where)
    assert kl_divergence(p, q).item() == pytest.approx(expected, rel=1e-11)
    assert kl_divergence(p, q, base=2).item() == pytest.approx(expected / math.log(2.0), rel=1e-11)
    assert reverse_kl(q, p).item() == kl_divergence(p, q).item()
    assert kl_divergence(p, p).item() == 0.0
    # One unit in the 12th place of a float32 apart: read in float64, where the usual formulas would give noise.
    near = [x if isinstance(x, int) else x * (1 + 2.0**-12) if x else -(2.0**-12) for x in a]
    if name == "Pareto":
        near[0] = a[0] * (1 - 2.0**-12)
    close = kl_divergence(made(cls, a, torch.float32), made(cls, near, torch.float32))
    assert close.dtype == torch.float32
    assert close.item() == pytest.approx(integral(log_density, a, near, where), rel=1e-6)


CROSS = {
    "Beta": "ContinuousBernoulli Exponential Gamma Uniform",
    "ContinuousBernoulli": "Exponential Normal Uniform",
    "Exponential": "Gamma Gumbel Normal",
    "Gamma": "Exponential Gumbel Normal",
    "Gumbel": "Normal",
    "Laplace": "Normal",
    "Normal": "Gumbel Laplace",
    "Pareto": "Exponential Gamma",
    "Uniform": "Beta ContinuousBernoulli Exponential Gamma Gumbel Normal",
}


@pytest.mark.parametrize("first", CROSS)
def test_between_two_families_the_kl_is_the_integral(first):
    rows = ROWS | {"Normal": NORMAL, "Beta": BETA}
    cls, a, _, log_p, where = rows[first]
    for second in CROSS[first].split():
        other, _, b, log_q, _ = rows[second]
        expected = integral(log_p, a, b, KINKED if second == "Laplace" else where, log_q)
        assert kl_divergence(made(cls, a), made(other, b)).item() == pytest.approx(expected, rel=1e-9), second


@pytest.mark.parametrize("a", [(0.0, 0.25), (0.25, 1.0), (0.25, 0.25 + 2.0**-20)], ids=str)
def test_a_uniform_anywhere_in_the_support_has_the_kl_of_the_integral(a):
    log_p = ROWS["Uniform"][3]
    for cls, _, b, log_q, _ in (BETA, ROWS["Gamma"]):
        numbers = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (*a, *b)]
        kl = kl_divergence(td.Uniform(*numbers[:2]), cls(*numbers[2:]))
        assert kl.item() == pytest.approx(integral(log_p, a, b, list(a), log_q), rel=1e-12), cls
        gradient = torch.autograd.grad(kl, numbers[2:])
        for i, slope in enumerate(gradient):
            ends = [
                integral(log_p, a, [x + h * (i == j) for j, x in enumerate(b)], list(a), log_q) for h in (1e-4, -1e-4)
            ]
            assert slope.item() == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-6, abs=1e-8), cls


def T(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype)


INFINITE = [
    (td.Uniform(0.0, 1.0), td.Uniform(0.1, 2.0)),
    (td.Uniform(0.0, 1.0), td.Pareto(1.0, 0.5)),
    (td.Uniform(-0.5, 1.0), td.ContinuousBernoulli(0.5)),
    (td.Uniform(-0.5, 1.0), td.Beta(1.5, 2.0)),
    (td.Uniform(0.5, 1.5), td.Beta(1.5, 2.0)),
    (td.Uniform(-0.5, 1.0), td.Gamma(1.5, 2.0)),
    (td.Pareto(1.0, 2.0), td.Pareto(1.5, 2.0)),
    (td.Pareto(1.0, 1.5), td.Normal(0.0, 1.0)),  # without a variance
    (td.Poisson(1.0), td.Poisson(0.0)),
    (td.Binomial(5, torch.tensor(0.5)), td.Binomial(4, torch.tensor(0.5))),
    (td.Multinomial(3, torch.ones(2)), td.Multinomial(2, torch.ones(2))),
    (td.Laplace(0.0, 1.0), td.Gamma(1.0, 1.0)),
]


def test_where_the_support_is_missed_the_kl_is_infinite():
    for p, q in INFINITE:
        assert kl_divergence(p, q).isinf().all(), (p, q)
        with pytest.raises(ValueError, match="q gives probability 0"):
            kl_divergence(p, q, support="raise")
        with pytest.raises(NoClosedForm, match="mixture"):
            kl_divergence(p, q, support="smooth")
    far = kl_divergence(td.Cauchy(0.0, 1.0), td.Cauchy(0.0, 1e30))  # its parameters' product is no float32
    assert far.item() == pytest.approx(math.log(1e30 / 4), rel=1e-6)
    assert kl_divergence(td.Gamma(2.0, 1.0), td.Gamma(3.0, 1.0), support="smooth").item() > 0.0


def test_published_and_enumerated_values():
    assert kl_divergence(td.Poisson(T(0.0, 0.0, 2.0)), td.Poisson(T(1.0, 0.0, 2.0))).tolist() == [1.0, 0.0, 0.0]
    p, q = td.Dirichlet(T(1e4, 1e4, dtype=torch.float32)), td.Dirichlet(T(10001.0, 1e4, dtype=torch.float32))
    with mp.workdps(40):
        a, c = [mp.mpf(10**4)] * 2, [mp.mpf(10001), mp.mpf(10**4)]
        normaliser = [mp.loggamma(sum(x)) - sum(map(mp.loggamma, x)) for x in (a, c)]
        slopes = [mp.digamma(x) - mp.digamma(sum(a)) for x in a]
        expected = float(normaliser[0] - normaliser[1] + sum((x - y) * s for x, y, s in zip(a, c, slopes, strict=True)))
    assert kl_divergence(p, q).item() == pytest.approx(expected, rel=1e-6)
    # Dirichlet(a, b) is the distribution of (x, 1 - x), x of Beta(a, b), whose KL is an integral.
    _, beta_p, beta_q, log_beta, where = BETA
    pair = [td.Dirichlet(T(*x)) for x in (beta_p, beta_q)]
    assert kl_divergence(*pair).item() == pytest.approx(integral(log_beta, beta_p, beta_q, where), rel=1e-11)
    # Wishart in one dimension with n degrees of freedom and scale v is Gamma(n / 2, 1 / (2 v)).
    wishart = [td.Wishart(T(n).squeeze(), covariance_matrix=T(v).reshape(1, 1)) for n, v in ((5.0, 0.5), (2.5, 0.75))]
    expected = integral(gamma, (2.5, 1.0), (1.25, 1.0 / 1.5), HALF)
    assert kl_divergence(*wishart).item() == pytest.approx(expected, rel=1e-11)
    counts = [td.Multinomial(2, T(*x)) for x in ((0.5, 0.25, 0.25), (0.125, 0.375, 0.5))]
    expected = 2 * (0.5 * math.log(4) + 0.25 * math.log(2 / 3) + 0.25 * math.log(1 / 2))
    assert kl_divergence(*counts).item() == pytest.approx(expected, rel=1e-12)


def test_a_wisharts_kl_is_the_mean_over_its_draws():
    g = torch.Generator().manual_seed(0)
    p = td.Wishart(T(6.0).squeeze(), covariance_matrix=T(1.0, 0.5, 0.5, 2.0).reshape(2, 2))
    q = td.Wishart(T(4.5).squeeze(), covariance_matrix=T(1.5, -0.25, -0.25, 1.0).reshape(2, 2))
    z = torch.randn(20_000, 6, 2, generator=g, dtype=torch.float64) @ p.scale_tril.mT  # as many rows as it has degrees
    x = z.mT @ z
    terms = p.log_prob(x) - q.log_prob(x)
    assert abs(kl_divergence(p, q) - terms.mean()) < 3.0 * terms.std() / len(x) ** 0.5


@pytest.mark.parametrize("name", [name for name in ROWS if name not in ("Poisson", "NegativeBinomial")])
def test_the_entropy_is_the_integral(name):
    cls, a, _, log_density, where = ROWS[name]

    def log_p(x):
        return log_density(x, *map(mp.mpf, a))

    where = [-mp.inf, -8, a[0], 8, mp.inf] if where is KINKED else where
    assert entropy(made(cls, a)).item() == pytest.approx(-float(mean(log_p, log_p, where)), rel=1e-9, abs=1e-12)


def test_divergences_that_are_made_of_kl_come_with_it():
    p, q = td.Gamma(T(2.0), T(1.0)), td.Gamma(T(3.0), T(0.5))
    assert jeffreys(p, q).item() == pytest.approx((kl_divergence(p, q) + kl_divergence(q, p)).item(), rel=1e-12)
    assert cross_entropy(p, q).item() == pytest.approx((p.entropy() + kl_divergence(p, q)).item(), rel=1e-12)


def test_an_independent_is_one_action_of_many_dimensions():
    a, b = torch.rand(4, 3, 2, dtype=torch.float64) + 0.5, torch.rand(3, 2, dtype=torch.float64) + 0.5
    p, q = (td.Independent(td.Exponential(x), 2) for x in (a, b))
    each = (a / b).log() + b / a - 1.0
    assert kl_per_dimension(p, q).shape == (4, 6)
    torch.testing.assert_close(kl_divergence(p, q), each.sum((-1, -2)), rtol=1e-10, atol=0.0)
    torch.testing.assert_close(entropy(p), (1.0 - a.log()).sum((-1, -2)), rtol=1e-12, atol=0.0)


def test_gradients_are_those_of_the_textbook():
    for dtype in (torch.float32, torch.float64):
        rate, two, one = torch.tensor(1.5, dtype=dtype, requires_grad=True), *torch.tensor([2.0, 1.0], dtype=dtype)
        for p, q, slope in (
            (td.Exponential(two), td.Exponential(rate), 1 / 2 - 1 / 1.5),
            (td.Poisson(two), td.Poisson(rate), 1 - 2 / 1.5),
            (td.Gamma(two, one), td.Gamma(two, rate), 2 / 1 - 2 / 1.5),
        ):
            (found,) = torch.autograd.grad(kl_divergence(p, q), rate)
            assert found.item() == pytest.approx(slope, rel=1e-6)


def test_pairs_without_a_closed_form_are_refused_in_one_line():
    half = torch.tensor(0.5)
    for p, q, text in (
        (
            td.Poisson(1.0),
            td.Geometric(0.5),
            r"^no closed form for KL between Poisson and Geometric; allowed: estimate_div",
        ),
        (
            td.Binomial(3, half),
            td.Binomial(4, half),
            r"^no closed form for KL between Binomial with different total_count",
        ),
        (td.NegativeBinomial(3, half), td.NegativeBinomial(4, half), r"NegativeBinomial with different total_count"),
        (td.StudentT(3.0), td.StudentT(4.0), r"^StudentT has no record"),
    ):
        with pytest.raises(NoClosedForm, match=text):
            kl_divergence(p, q)
    for p, name in ((td.Poisson(1.0), "Poisson"), (td.Multinomial(3, torch.ones(2)), "Multinomial")):
        with pytest.raises(
            NoClosedForm, match=f"^no closed form for the entropy of {name}; allowed: .*estimate_entropy"
        ):
            entropy(p)
    with pytest.raises(ValueError, match=r"^p has 1 classes, q has 3; they must agree"):
        kl_divergence(td.Dirichlet(T(2.0)), td.Dirichlet(T(1.0, 1.0, 1.0)))
