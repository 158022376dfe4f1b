"""Estimates from samples: within three standard errors of quadrature and closed forms, honest about their error."""

import functools
import math

import numpy as np
import pytest
import torch
from families import MAKE, every_family, integrals, mixture, normal, seeded
from scipy import special, stats
from torch import distributions as td

import klrl.kl.sampled
from klrl.kl import StateEstimate, entropy, estimate_divergence, estimate_entropy, kl_divergence
from klrl.kl.samplers import sampler
from klrl.policy.distributions import Bernoulli, Beta, Categorical, DiagGaussian, GaussianMixture, SquashedGaussian

pytestmark = pytest.mark.filterwarnings("ignore::klrl.kl.DoubtfulEstimateWarning")  # few samples suffice here

INF, LOG2 = math.inf, math.log(2.0)

# By their definitions, of densities p and q.
DEFINITIONS = {
    "kl": lambda p, q: p * (np.log(p) - np.log(q)),
    "reverse_kl": lambda p, q: q * (np.log(q) - np.log(p)),
    "jeffreys": lambda p, q: (p - q) * (np.log(p) - np.log(q)),
    "jensen_shannon": lambda p, q: 0.5 * (xlogy(p, 2 * p / (p + q)) + xlogy(q, 2 * q / (p + q))),
    "total_variation": lambda p, q: 0.5 * abs(p - q),
    "hellinger": lambda p, q: 0.5 * (np.sqrt(p) - np.sqrt(q)) ** 2,  # and its square root
}
divergences = pytest.mark.parametrize("divergence", DEFINITIONS)


def xlogy(x, y):
    return x * np.log(np.where(x > 0, y, 1.0))


def within_three_standard_errors(estimate, exact, bias=0.0):
    assert ((estimate.value - exact).abs() <= 3.0 * estimate.stderr + bias).all()


@every_family
@divergences
def test_every_family_is_within_three_standard_errors_of_the_integral(family, divergence):
    p, q = MAKE[family](2, 1, seed=1), MAKE[family](2, seed=11)
    exact = integrals(p, q, lambda a, b: DEFINITIONS[divergence](np.exp(a) + 1e-290, np.exp(b) + 1e-290))
    exact = exact.sqrt() if divergence == "hellinger" else exact
    estimate = estimate_divergence(p, q, divergence, 20_000, seeded(5))
    assert isinstance(estimate, StateEstimate)
    assert estimate.value.shape == estimate.stderr.shape == (2, 2)
    assert estimate.n == 20_000
    within_three_standard_errors(estimate, exact, 1e-3)


# Pairs of different families, some of which torch alone knows.
LAPLACE = td.Laplace(torch.tensor([0.0, 0.5]), torch.tensor([1.0, 0.7]))
NORMAL = td.Normal(torch.tensor([0.0, 0.3]), torch.tensor([1.2, 0.8]))
GAMMA = td.Gamma(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0]))
LOG_NORMAL = td.LogNormal(torch.tensor([0.3, 0.2]), torch.tensor([0.7, 0.6]))
PAIRS = {
    "Laplace, Normal": (LAPLACE, NORMAL, -25, 25),
    "Laplace, record": (LAPLACE, DiagGaussian(NORMAL.loc[:, None], NORMAL.scale.log()[:, None]), -25, 25),
    "record, Laplace": (DiagGaussian(NORMAL.loc[:, None], NORMAL.scale.log()[:, None]), LAPLACE, -25, 25),
    "Gamma, Normal": (GAMMA, NORMAL, -10, 25),
    "Normal, Gamma": (NORMAL, GAMMA, -10, 25),
    "Gamma, LogNormal": (GAMMA, LOG_NORMAL, 0, 60),
    "Beta, Normal": (Beta(torch.tensor([[2.0], [3.0]]), torch.tensor([[2.0], [1.5]])), NORMAL, -10, 11),
    "Squashed, Beta": (SquashedGaussian(torch.tensor([[0.5]]), torch.tensor([[-1.0]])), td.Beta(2.0, 2.0), -1, 1),
    "Uniform, Normal": (td.Uniform(torch.tensor([-1.0, 0.0]), 1.0), NORMAL, -10, 10),
}
SCIPY = {
    td.Laplace: lambda d: stats.laplace(d.loc, d.scale),
    td.Normal: lambda d: stats.norm(d.loc, d.scale),
    td.Gamma: lambda d: stats.gamma(d.concentration, scale=1 / d.rate),
    td.LogNormal: lambda d: stats.lognorm(d.scale, scale=d.loc.exp()),
    td.Uniform: lambda d: stats.uniform(d.low, d.high - d.low),
    td.Beta: lambda d: stats.beta(d.concentration1, d.concentration0),
    Beta: lambda d: stats.beta(d.alpha[:, 0], d.beta[:, 0]),
    DiagGaussian: lambda d: stats.norm(d.mean[:, 0], d.std[:, 0]),
}


class TanhOfNormal:
    def __init__(self, record):
        self.u = stats.norm(record.mean[:, 0], record.log_std[:, 0].exp())

    def pdf(self, x):
        inside = np.abs(x) < 1
        y = np.where(inside, x, 0.0)
        return np.where(inside, self.u.pdf(np.arctanh(y)) / (1 - y * y), 0.0)


def pdf_of(d, x):
    """``[states, points]``."""
    frozen = TanhOfNormal(d) if isinstance(d, SquashedGaussian) else SCIPY[type(d)](d)
    values = frozen.pdf(x[:, None])
    return np.broadcast_to(values, (len(x), 2)).T


@functools.cache
def densities_of(names):
    """Points between the ends of a pair, and both densities there."""
    p, q, low, high = PAIRS[names]
    x = np.linspace(low, high, 50_002)[1:-1]
    return x, (pdf_of(p, x), pdf_of(q, x))


@divergences
@pytest.mark.parametrize("names", PAIRS)
def test_pairs_of_different_families_agree_with_quadrature(names, divergence):
    p, q, *_ = PAIRS[names]
    estimate = estimate_divergence(p, q, divergence, 40_000, seeded(3))
    assert estimate.value.dtype == torch.float32
    x, densities = densities_of(names)
    for f, g, value, stderr in zip(*densities, estimate.value, estimate.stderr, strict=False):
        missed_by_q, missed_by_p = ((f > 0) & (g == 0)).any(), ((g > 0) & (f == 0)).any()
        if {"kl": missed_by_q, "reverse_kl": missed_by_p, "jeffreys": missed_by_q | missed_by_p}.get(divergence, False):
            assert value.item() == stderr.item() == INF
            continue
        some = (f > 0) | (g > 0)
        a, b = (np.maximum(y[some], 1e-300) for y in (f, g))
        exact = DEFINITIONS[divergence](a, b).sum() * (x[1] - x[0])
        exact = exact**0.5 if divergence == "hellinger" else exact
        assert 0.0 < stderr.item() < 0.05
        assert abs(value.item() - exact) <= 3.0 * stderr.item() + 1e-3


def test_a_density_that_p_has_not_is_counted():
    """k3 over samples of p, E_p[phi(log q/p)], misses what q has where p is 0: half of it, here."""
    p, q = td.Uniform(0.0, 1.0), td.Uniform(0.0, 2.0)
    estimate = estimate_divergence(p, q, generator=seeded(0))
    within_three_standard_errors(estimate, LOG2, 1e-6)
    assert estimate_divergence(q, p, generator=seeded(0)).value.item() == INF


def test_disjoint_supports_and_equals():
    p, q = td.Uniform(torch.zeros(2), 1.0), td.Uniform(torch.tensor([2.0, 0.0]), torch.tensor([3.0, 1.0]))
    for divergence, apart in (("kl", INF), ("jensen_shannon", LOG2), ("total_variation", 1.0), ("hellinger", 1.0)):
        estimate = estimate_divergence(p, q, divergence, 100, seeded(0))
        assert estimate.value.tolist() == pytest.approx([apart, 0.0], abs=1e-6)
        assert not estimate.stderr.isnan().any()


def test_actions_that_only_one_of_two_categoricals_has():
    p, q = Categorical(torch.zeros(2)), Categorical(torch.zeros(4))
    within_three_standard_errors(estimate_divergence(p, q, generator=seeded(0)), LOG2, 1e-6)
    assert estimate_divergence(q, p, generator=seeded(0)).value.item() == INF
    masked = Categorical(torch.tensor([0.0, 0.0, -INF, -INF]))
    assert estimate_divergence(Categorical(torch.zeros(4)), masked, generator=seeded(0)).stderr.item() == INF


@divergences
def test_mixtures_have_estimates(divergence):
    p, q = mixture(3, seed=1), mixture(3, K=2, seed=21)
    few, many = (estimate_divergence(p, q, divergence, n, seeded(1)) for n in (4000, 64_000))
    assert (many.stderr < few.stderr).all()
    assert (few.value >= 0.0).all()
    assert ((few.value - many.value).abs() <= 3.0 * few.stderr + 1e-3).all()


def test_standard_errors_are_the_spread_of_estimates():
    p, q = normal(0.0, 1.0), normal(0.4, 1.8)  # k3 over samples of p has an infinite variance here
    for divergence in ("kl", "reverse_kl", "jensen_shannon", "total_variation", "hellinger"):
        runs = [estimate_divergence(p, q, divergence, 400, seeded(i)) for i in range(300)]
        spread = torch.stack([r.value for r in runs]).std()
        claimed = torch.stack([r.stderr for r in runs]).mean()
        assert claimed.item() == pytest.approx(spread.item(), rel=0.15)


# Entropy.
@every_family
def test_entropies_are_within_three_standard_errors(family):
    p = MAKE[family](5, seed=1)
    within_three_standard_errors(estimate_entropy(p, 20_000, seeded(1)), entropy(p))


# Two halves far apart: log 2 plus that of a normal.
def test_entropies_of_a_mixture_and_of_a_torch_object():
    mix = GaussianMixture(torch.zeros(2), torch.tensor([[0.0], [1e3]]), torch.zeros(2, 1))
    within_three_standard_errors(
        estimate_entropy(mix, generator=seeded(0)), LOG2 + 0.5 * math.log(2 * math.pi * math.e)
    )
    estimate = estimate_entropy(td.Gamma(2.0, 1.0), generator=seeded(0))
    within_three_standard_errors(estimate, float(stats.gamma(2.0).entropy()))


# Randomness and memory.
@pytest.mark.parametrize("p", [mixture(2), LAPLACE, GAMMA], ids=["record", "Laplace", "Gamma"])
def test_a_generator_makes_estimates_repeatable_and_leaves_the_global_one_alone(p):
    before = torch.get_rng_state()
    first, second, other = (estimate_entropy(p, 100, seeded(i)) for i in (5, 5, 6))
    assert torch.equal(first.value, second.value)
    assert not torch.equal(first.value, other.value)
    estimate_divergence(p, p, "kl", 10, seeded(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_chunks_bound_the_memory_and_change_nothing_but_the_draws(monkeypatch):
    p, q = MAKE[DiagGaussian](3, seed=1), MAKE[DiagGaussian](3, seed=1).map(lambda x: x + 0.1)
    sizes, sample = [], DiagGaussian.sample

    def spy(self, generator=None):
        sizes.append(self.batch_shape.numel() * 2)
        return sample(self, generator)

    monkeypatch.setattr(DiagGaussian, "sample", spy)
    monkeypatch.setattr(klrl.kl.sampled, "CHUNK", 600)
    estimate = estimate_divergence(p, q, n=10_050, generator=seeded(0))
    assert max(sizes) <= 600
    assert sum(sizes) == 2 * 10_050 * 6
    within_three_standard_errors(estimate, kl_divergence(p, q))


# Refused.
@pytest.mark.parametrize(
    ("p", "q", "arguments", "text"),
    [
        (LAPLACE, LAPLACE, {"divergence": "k3"}, r"^divergence = 'k3'; allowed: kl, reverse_kl, "),
        (LAPLACE, LAPLACE, {"n": 1}, r"^n = 1; allowed: >= 2 samples$"),
        (
            MAKE[Categorical](),
            MAKE[DiagGaussian](),
            {},
            r"^p has actions discrete \[\] and q continuous \[2\]; allowed",
        ),
        (MAKE[Beta](), LAPLACE, {}, r"^p has actions continuous \[2\] and q continuous \[\]; allowed: one shape"),
        (Bernoulli(torch.zeros(2)), MAKE[DiagGaussian](), {}, r"^p has actions discrete \[2\] and q continuous \[2\]"),
        (MAKE[Beta](3), MAKE[DiagGaussian](2), {}, r"^p and q have batch shapes \[3\] and \[2\]; allowed"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(p, q, arguments, text):
    with pytest.raises(ValueError, match=text) as error:
        estimate_divergence(p, q, **arguments)
    assert "\n" not in str(error.value)


def test_nan_in_a_policy_is_not_hidden():
    estimate = estimate_divergence(normal(math.nan, 1.0), normal(0.0, 1.0), generator=seeded(0))
    assert estimate.value.isnan()


def test_saturated_actions_are_compared_before_the_tanh():
    p, q = (SquashedGaussian(torch.tensor([m]), torch.tensor([0.0])) for m in (20.0, 20.5))
    estimate = estimate_divergence(p, q, n=4000, generator=seeded(0))
    assert abs(estimate.value.item() - 0.125) <= 3.0 * estimate.stderr.item()


class Triangle(td.Distribution):
    """A distribution of one's own, with what estimates need and no more."""

    arg_constraints = {}  # noqa: RUF012

    def sample(self, sample_shape=()):
        return torch.rand(2, *sample_shape).sum(0)

    def log_prob(self, value):
        return (1.0 - (value - 1.0).abs()).log()


def test_a_distribution_that_names_no_support_is_positive_where_it_says():
    p = Triangle(validate_args=False)
    estimate = estimate_entropy(p, n=4000, generator=seeded(0))
    assert abs(estimate.value.item() - 0.5) <= 4.0 * estimate.stderr.item()


def test_what_is_no_distribution_is_refused():
    with pytest.raises(TypeError, match=r"^int is not a distribution; allowed: a record"):
        estimate_entropy(3)


@pytest.mark.parametrize(("a", "b", "c", "d"), [(0.1, 0.1, 0.1, 0.2), (0.05, 0.05, 0.05, 0.1), (0.1, 0.02, 0.1, 0.04)])
def test_betas_whose_mass_is_at_the_border_are_estimated_by_their_log_odds(a, b, c, d):
    p, q = (Beta(*(torch.tensor([x], dtype=torch.float64) for x in shapes)) for shapes in ((a, b), (c, d)))
    found = estimate_divergence(p, q, n=20_000, generator=torch.Generator().manual_seed(0))
    assert abs(found.value - kl_divergence(p, q)).item() < 4.0 * found.stderr.item()


def test_parameters_of_torch_objects_are_read_in_float64():
    """Large parameters, whose log-densities float32 knows to 1e-2 only."""
    pairs = {
        "Gamma": lambda t: [td.Gamma(t(1e5), t(rate)) for rate in (1.0, 1.001)],
        "Dirichlet": lambda t: [td.Dirichlet(torch.stack([t(x), t(1e4)])) for x in (1e4, 10001.0)],
        "Weibull": lambda t: [td.Weibull(t(2.0), t(x)) for x in (3.0, 3.1)],  # a power of a power of a scale
        "NegativeBinomial": lambda t: [td.NegativeBinomial(t(1e5), probs=t(x)) for x in (0.3, 0.301)],
    }
    for make in pairs.values():
        short, wide = (
            make(lambda x, dtype=dtype: torch.tensor(x).to(dtype)) for dtype in (torch.float32, torch.float64)
        )
        found, expected = (
            estimate_divergence(*pair, n=20_000, generator=torch.Generator().manual_seed(0)) for pair in (short, wide)
        )
        torch.testing.assert_close(found.value.double(), expected.value, rtol=1e-6, atol=0.0)
        assert (found.value.dtype, short[0].sample().dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("kappa", [1.5, 1e5])
def test_von_mises_is_sampled_in_float64(kappa):
    """KL = log I0(b)/I0(a) + A(a) (a - b cos(shift)), A = I1/I0: no closed form of klrl's."""
    shift, other = 0.5 / kappa**0.5, 0.75 * kappa
    p, q = (td.VonMises(torch.tensor(m), torch.tensor(k)) for m, k in ((0.0, kappa), (shift, other)))
    assert p.loc.dtype == torch.float32
    draws = sampler(p).sample(10, seeded(0))
    assert draws.dtype == sampler(p).log_prob(draws).dtype == torch.float64
    assert not torch.equal(draws, draws.float().double())
    b, m = q.concentration.double().item(), q.loc.double().item()
    normalisers = np.log(special.i0e(b) / special.i0e(kappa)) + b - kappa
    exact = normalisers + special.i1e(kappa) / special.i0e(kappa) * (kappa - b * np.cos(m))
    estimate = estimate_divergence(p, q, "kl", 20_000, seeded(1))
    within_three_standard_errors(estimate, exact)
    assert estimate.value.dtype == torch.float32
    with pytest.raises(TypeError, match=r"VonMises has no record; .*estimate_divergence"):
        kl_divergence(p, q)
