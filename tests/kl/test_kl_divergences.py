"""Divergences beside KL: by quadrature and enumeration in every family, their bounds, what they do at the border."""

import itertools
import math

import numpy as np
import pytest
import torch
from families import (
    DISCRETE,
    MAKE,
    discrete_families,
    every_family,
    heads_of,
    integrals,
    leaves,
    lower,
    mixture,
    normal,
    randn,
    seeded,
    to_torch,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats
from torch import distributions as td

from klrl.kl import (
    effective_sample_size,
    hellinger,
    jeffreys,
    jensen_shannon,
    kl_divergence,
    renyi,
    reverse_kl,
    total_variation,
    wasserstein,
)
from klrl.policy.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    DiagGaussian,
    FullGaussian,
    MultiCategorical,
    NoClosedForm,
    SquashedGaussian,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*the standard error cannot be trusted:RuntimeWarning")

INF, LOG2 = math.inf, math.log(2.0)
batches = pytest.mark.parametrize(("p_batch", "q_batch"), [((), ()), ((4,), (4,)), ((2, 1), (3,))])
ORDERS = [0.1, 0.5, 0.9, 1.0, 1.1, 1.5]


def pair(family, p_batch=(4,), q_batch=(4,)):
    return MAKE[family](*p_batch, seed=1), MAKE[family](*q_batch, seed=2)


def near(family, step, batch=(4,)):
    """Two that are close, in whose neighbourhood every order exists."""
    p = MAKE[family](*batch, seed=1)
    moved = [x + step * randn(*x.shape, seed=5 + i) for i, x in enumerate(p.parameters)]
    return p, p.with_parameters(*(x.tril() if x.ndim - len(batch) == 2 else x for x in moved))


def close(x, y, rtol=1e-8, atol=1e-12):
    torch.testing.assert_close(x, y, rtol=rtol, atol=atol)


def power(alpha):
    return lambda log_p, log_q: np.exp(alpha * log_p + (1.0 - alpha) * log_q)


def balanced(log_p, log_q):
    """1/2 p log p/m + 1/2 q log q/m."""
    log_m = np.logaddexp(log_p, log_q) - LOG2
    return 0.5 * (np.exp(log_p) * (log_p - log_m) + np.exp(log_q) * (log_q - log_m))


def gap(log_p, log_q):
    return 0.5 * np.abs(np.exp(log_p) - np.exp(log_q))


# Against integrals.
@every_family
@batches
def test_jeffreys_is_the_integral_that_defines_it(family, p_batch, q_batch):
    p, q = pair(family, p_batch, q_batch)
    close(jeffreys(p, q), integrals(p, q, lambda a, b: (np.exp(a) - np.exp(b)) * (a - b)))
    close(jeffreys(p, q), kl_divergence(p, q) + reverse_kl(p, q))


@every_family
@batches
@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_renyi_below_1_is_the_integral_that_defines_it(family, p_batch, q_batch, alpha):
    p, q = pair(family, p_batch, q_batch)
    expected = integrals(p, q, power(alpha)).log() / (alpha - 1.0)
    assert renyi(p, q, alpha).shape == torch.broadcast_shapes(p_batch, q_batch)
    close(renyi(p, q, alpha), expected)
    close(renyi(p, q, alpha, base=2), expected / LOG2)


@every_family
@pytest.mark.parametrize("alpha", [1.1, 2.0, 3.0])
@pytest.mark.parametrize("step", [0.02, 0.06])  # wider, and p^3 q^-2 leaves the grid
def test_renyi_above_1_is_the_integral_that_defines_it(family, alpha, step):
    p, q = near(family, step)
    close(renyi(p, q, alpha), integrals(p, q, power(alpha)).log() / (alpha - 1.0), atol=1e-11)


@every_family
@batches
def test_hellinger_is_the_integral_that_defines_it(family, p_batch, q_batch):
    p, q = pair(family, p_batch, q_batch)
    square = integrals(p, q, lambda a, b: 0.5 * (np.exp(a / 2) - np.exp(b / 2)) ** 2)
    close(hellinger(p, q, squared=True), square)
    close(hellinger(p, q), square.sqrt())


@discrete_families
@batches
def test_total_variation_and_jensen_shannon_are_sums_over_joint_outcomes(family, p_batch, q_batch):
    p, q = pair(family, p_batch, q_batch)
    close(total_variation(p, q), integrals(p, q, gap))
    close(jensen_shannon(p, q), integrals(p, q, balanced))
    close(jensen_shannon(p, q, base=2), integrals(p, q, balanced) / LOG2)


@pytest.mark.parametrize(
    ("mean", "std"), [(0.5, 0.7), (0.5, 0.70001), (0.9, 0.7), (0.9, 2.0), (-3.0, 0.2), (40.0, 0.1), (0.5, 30.0)]
)
def test_total_variation_of_normals_in_one_dimension_is_the_integral(mean, std):
    p, q = normal(0.5, 0.7), normal(mean, std)
    a, b = stats.norm(0.5, 0.7), stats.norm(mean, std)
    edges = sorted({x for c, s in ((0.5, 0.7), (mean, std)) for x in (c - 9 * s, c - s, c, c + s, c + 9 * s)})
    pieces = [
        integrate.quad(lambda x: 0.5 * abs(a.pdf(x) - b.pdf(x)), *ends, limit=200, epsabs=1e-11)[0]
        for ends in itertools.pairwise(edges)
    ]
    full = [FullGaussian(r.mean, r.std.unsqueeze(-1)) for r in (p, q)]
    squashed = [SquashedGaussian(*r.parameters) for r in (p, q)]
    for x, y in ((p, q), (q, p), full, (p, full[1]), squashed):
        assert total_variation(x, y).item() == pytest.approx(sum(pieces), rel=1e-7, abs=1e-9)


def test_total_variation_of_normals_with_equal_covariances_is_the_integral():
    p, q = MAKE[FullGaussian](4, seed=1), MAKE[FullGaussian](4, seed=2)
    q = FullGaussian(q.mean, p.scale_tril)
    torch.testing.assert_close(total_variation(p, q), integrals(p, q, gap), rtol=0.0, atol=2e-3)  # a kink on a grid
    a, b = MAKE[DiagGaussian](4, seed=1), MAKE[DiagGaussian](4, seed=2)
    b = DiagGaussian(b.mean, a.log_std)
    torch.testing.assert_close(total_variation(a, b), integrals(a, b, gap), rtol=0.0, atol=2e-3)
    z = ((a.mean - b.mean) / a.std).norm(dim=-1)
    close(total_variation(a, b), torch.tensor(2 * stats.norm.cdf(z / 2) - 1))


# p = (1/2, 1/2, 0), q = (0, 1/2, 1/2): m = (1/4, 1/2, 1/4), JS = 1/2 log 2, TV = 1/2, BC = 1/2.
def test_supports_that_differ_by_hand():
    p, q = (Categorical(torch.tensor(x, dtype=torch.float64).log()) for x in ([0.5, 0.5, 0.0], [0.0, 0.5, 0.5]))
    assert jensen_shannon(p, q).item() == pytest.approx(0.5 * LOG2, rel=1e-12)
    assert total_variation(p, q).item() == pytest.approx(0.5, rel=1e-12)
    assert hellinger(p, q).item() == pytest.approx(0.5**0.5, rel=1e-12)
    assert renyi(p, q, 0.5).item() == pytest.approx(2.0 * LOG2, rel=1e-12)
    assert [f(p, q).item() for f in (jeffreys, lambda a, b: renyi(a, b, 1.0), lambda a, b: renyi(a, b, 2.0))] == [
        INF
    ] * 3
    assert effective_sample_size(p, q).item() == 0.0


def test_disjoint_supports_are_as_far_apart_as_can_be():
    p, q = Categorical(torch.tensor([0.0, -INF])), Categorical(torch.tensor([-INF, 0.0]))
    assert jensen_shannon(p, q).item() == pytest.approx(LOG2)
    assert total_variation(p, q).item() == hellinger(p, q).item() == 1.0
    assert [renyi(p, q, alpha).item() for alpha in (0.5, 1.0, 2.0, INF)] == [INF] * 4
    assert effective_sample_size(p, q).item() == 0.0


# Where the integral diverges.
@pytest.mark.parametrize("full", [False, True])
def test_renyi_between_normals_is_infinite_from_alpha_sq2_plus_1_minus_alpha_sp2_at_0_on(full):
    def of(std):
        return FullGaussian(torch.zeros(1), torch.full((1, 1), std)) if full else normal(0.0, std)

    assert renyi(of(1.4), of(1.0), 2.0).item() < INF  # 2 - 1.96 > 0
    assert renyi(of(1.42), of(1.0), 2.0).item() == INF
    assert effective_sample_size(of(1.42), of(1.0)).item() == 0.0
    assert renyi(of(1.42), of(1.0), 0.5).item() < INF


def test_renyi_between_betas_is_infinite_where_a_parameter_vanishes():
    p, q = (Beta(torch.tensor([a]), torch.tensor([2.0])) for a in (1.0, 2.0))
    assert renyi(p, q, 1.9).item() < INF  # 1.9 * 1 - 0.9 * 2 = 0.1
    assert renyi(p, q, 2.0).item() == INF
    assert renyi(q, p, 2.0).item() < INF


def test_an_infinite_state_can_be_an_error_and_does_not_spoil_its_neighbours():
    p = leaves(DiagGaussian(torch.zeros(2, 1), torch.tensor([[1.0], [0.1]])))
    q = leaves(DiagGaussian(torch.ones(2, 1), torch.zeros(2, 1)))
    value = renyi(p, q, 2.0)
    value[1].backward()
    assert value.isinf().tolist() == [True, False]
    assert all(x.grad.isfinite().all() for x in (*p.parameters, *q.parameters))
    with pytest.raises(ValueError, match=r"^the Rényi divergence of order 2 is infinite in 1 of 2 states; allowed:"):
        renyi(p, q, 2.0, support="raise")
    masked = Categorical(torch.tensor([0.0, -INF]))
    with pytest.raises(ValueError, match=r"^q gives probability 0"):
        jeffreys(Categorical(torch.zeros(2)), masked, support="raise")
    with pytest.raises(ValueError, match=r"^p gives probability 0"):
        jeffreys(masked, Categorical(torch.zeros(2)), support="raise")
    assert jeffreys(masked, Categorical(torch.zeros(2)), support="smooth").isfinite()


# Infinite order: the largest log p - log q over a grid.
@pytest.mark.parametrize("family", [f for f in MAKE if f is not FullGaussian])
def test_renyi_of_infinite_order_is_the_largest_log_ratio(family):
    p = MAKE[family](seed=1)
    if family is Beta:
        q = Beta(p.alpha - 0.3, p.beta - 0.4)
        x = np.linspace(1e-4, 1 - 1e-4, 200_001)
        log_ratio = [
            (stats.beta.logpdf(x, *ab) - stats.beta.logpdf(x, *cd)).max()
            for ab, cd in zip(np.stack(p.parameters, -1), np.stack(q.parameters, -1), strict=True)
        ]
    elif family in DISCRETE:
        q = MAKE[family](seed=2)
        log_ratio = [np.log(a / b).max() for a, b in zip(heads_of(p), heads_of(q), strict=True)]
    else:
        q = family(MAKE[family](seed=2).mean, p.log_std + 0.4)
        x = np.linspace(-30, 30, 600_001)
        parameters = [(r.mean.numpy(), r.log_std.exp().numpy()) for r in (p, q)]
        columns = [[stats.norm.logpdf(x, m[i], s[i]) for m, s in parameters] for i in range(2)]
        log_ratio = [(a - b).max() for a, b in columns]
    assert renyi(p, q, INF).item() == pytest.approx(sum(log_ratio), rel=1e-6)
    if family not in DISCRETE:
        assert renyi(q, p, INF).item() == INF
    assert renyi(p, p, INF).item() == 0.0


# Bounds and order.
@every_family
def test_renyi_grows_with_its_order_and_passes_through_kl(family):
    p, q = near(family, 0.1, (50,))
    values = torch.stack([renyi(p, q, alpha) for alpha in (0.01, 0.5, 0.999, 1.0, 1.001, 2.0)])
    assert (values.diff(dim=0) >= -1e-12).all()
    close(renyi(p, q, 1.0), kl_divergence(p, q))
    for alpha in (1.0 - 1e-7, 1.0 + 1e-7, 1.0 + 1e-13):
        torch.testing.assert_close(renyi(p, q, alpha), kl_divergence(p, q), rtol=1e-5, atol=1e-12)
    p, q = pair(family)
    for alpha in (0.2, 0.5, 0.8):  # skew symmetry: (1 - a) D_a(p||q) = a D_{1 - a}(q||p)
        close((1.0 - alpha) * renyi(p, q, alpha), alpha * renyi(q, p, 1.0 - alpha))


@discrete_families
def test_the_known_inequalities(family):
    p, q, r = (MAKE[family](200, seed=i) for i in (1, 2, 3))
    tv, kl, h, js = total_variation(p, q), kl_divergence(p, q), hellinger(p, q), jensen_shannon(p, q)
    assert (tv <= (kl / 2).sqrt()).all()  # Pinsker
    assert (tv <= (1 - (-kl).exp()).sqrt()).all()  # Bretagnolle and Huber
    assert ((h * h <= tv) & (tv <= 2**0.5 * h)).all()
    assert ((js <= LOG2) & (js <= jeffreys(p, q) / 4)).all()
    assert (js <= LOG2 * tv).all()
    for metric in (total_variation, hellinger, lambda a, b: jensen_shannon(a, b).sqrt()):
        assert (metric(p, r) <= metric(p, q) + metric(q, r) + 1e-12).all()
        close(metric(p, q), metric(q, p))


@pytest.mark.parametrize("family", [DiagGaussian, Beta])
def test_hellinger_is_a_metric_between_densities_too(family):
    p, q, r = (MAKE[family](200, seed=i) for i in (1, 2, 3))
    assert (hellinger(p, r) <= hellinger(p, q) + hellinger(q, r) + 1e-12).all()
    assert ((hellinger(p, q) >= 0) & (hellinger(p, q) <= 1)).all()


# E_q[(p/q)^2] = e^{D_2(p||q)}
@pytest.mark.parametrize("family", [Categorical, DiagGaussian, Beta, FullGaussian])
def test_the_effective_sample_size_is_that_of_weighted_samples_of_q(family):
    n = 200_000
    p, q = near(family, 0.06, ())
    many = [r.map(lambda x: x.expand(n, *x.shape)) for r in (p, q)]
    action = many[1].sample(seeded(0))
    w = (many[0].log_prob(action) - many[1].log_prob(action)).exp()
    sampled = w.sum() ** 2 / (n * (w * w).sum())
    assert effective_sample_size(p, q).item() == pytest.approx(sampled.item(), rel=0.003)
    close(effective_sample_size(p, q), 1.0 / integrals(p, q, power(2.0)))


# Equal arguments, small and large steps, types.
MEASURES = {
    "jeffreys": jeffreys,
    "hellinger": hellinger,
    "renyi 1/2": lambda p, q: renyi(p, q, 0.5),
    "renyi 2": lambda p, q: renyi(p, q, 2.0),
    "jensen_shannon": jensen_shannon,
    "total_variation": total_variation,
}


def defined(measure, p, q):
    try:
        return MEASURES[measure](p, q)
    except NoClosedForm:
        return None


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_equals_are_0_apart_with_finite_gradients(family, dtype, scale):
    p = MAKE[family](20, seed=1)
    if family in (DiagGaussian, SquashedGaussian):
        p = family(p.mean, p.log_std + math.log(scale))
    elif family in (FullGaussian, Beta):
        p = family(*(scale * x for x in p.parameters))
    for measure in MEASURES:
        a, b = (leaves(p.map(lambda x: x.to(dtype))) for _ in range(2))
        if (value := defined(measure, a, b)) is None:
            continue
        assert value.dtype == dtype, measure
        assert ((value >= 0.0) & (value <= 1e-12)).all(), measure
        value.sum().backward()
        gradients = torch.cat([x.grad.flatten() for x in (*a.parameters, *b.parameters) if x.grad is not None])
        assert gradients.isfinite().all(), measure
        if measure not in ("hellinger", "total_variation"):
            assert (gradients.abs() <= 1e-6 * max(1.0, 1.0 / scale)).all(), measure


@every_family
@pytest.mark.parametrize("measure", MEASURES)
def test_gradients_are_those_of_finite_differences(family, measure):
    p, q = near(family, 0.08, (2,))
    if family is FullGaussian:
        p, q = (FullGaussian(r.mean, lower(r.scale_tril)) for r in (p, q))
    if defined(measure, p, q) is None:
        return
    n = len(p.parameters)
    arguments = [x.clone().requires_grad_() for x in (*p.parameters, *q.parameters)]
    function = MEASURES[measure]
    assert torch.autograd.gradcheck(
        lambda *x: function(p.with_parameters(*x[:n]), q.with_parameters(*x[n:])), arguments, atol=1e-5
    )


@every_family
@pytest.mark.parametrize("measure", MEASURES)
def test_float32_torch_objects_and_numpy_records_are_taken(family, measure):
    p, q = near(family, 0.1)
    if (expected := defined(measure, p, q)) is None:
        return
    as_numpy = MEASURES[measure](*(r.map(lambda x: x.numpy()) for r in (p, q)))
    assert isinstance(as_numpy, np.ndarray)
    np.testing.assert_allclose(as_numpy, expected.numpy(), rtol=1e-12)
    if family is not MultiCategorical:
        narrow = MEASURES[measure](*(to_torch(r.map(lambda x: x.float())) for r in (p, q)))
        assert narrow.dtype == torch.float32
        torch.testing.assert_close(narrow.double(), expected, rtol=1e-3, atol=1e-7)


@every_family
@pytest.mark.parametrize("step", [1e-5, 1e-4, 1e-3])
def test_near_equals_all_are_what_the_fisher_metric_says(family, step):
    """D_a ~ a KL, H^2 ~ KL / 4, JS ~ KL / 4, Jeffreys ~ 2 KL to leading order (Amari 2016, section 3.5)."""
    p, q = near(family, step)
    kl = kl_divergence(p, q)
    for value, factor in (
        (renyi(p, q, 0.5), 0.5),
        (renyi(p, q, 2.0), 2.0),
        (hellinger(p, q, squared=True), 0.25),
        (defined("jensen_shannon", p, q), 0.25),
        (jeffreys(p, q), 2.0),
    ):
        if value is not None:
            torch.testing.assert_close(value, factor * kl, rtol=30 * step + 1e-5, atol=0.0)


wide = st.floats(-200, 200) | st.just(-INF)


@given(
    st.lists(wide, min_size=4, max_size=4),
    st.lists(wide, min_size=4, max_size=4),
    st.sampled_from([0.3, 2.0, 7.0, INF]),
)
@settings(deadline=None, max_examples=150, derandomize=True)
def test_any_logits_give_no_nan(x, y, alpha):
    if max(x) == -INF or max(y) == -INF:
        return
    p, q = (Categorical(torch.tensor(z, dtype=torch.float64).requires_grad_()) for z in (x, y))
    for measure in (lambda a, b: renyi(a, b, alpha), hellinger, jensen_shannon, total_variation, effective_sample_size):
        value = measure(p, q)
        assert value.item() >= 0.0
        if value.item() < INF:
            gradients = torch.autograd.grad(value, (p.logits, q.logits))
            assert all(g.isfinite().all() for g in gradients)
    missed = any(a > -INF and b == -INF for a, b in zip(x, y, strict=True))
    assert (renyi(p, q, 2.0).item() == INF) == missed


bit = st.sampled_from([-INF, -800.0, -3.0, 0.0, 2.0, 90.0, INF])


@given(bit, bit, bit, bit, st.sampled_from([0.3, 2.0, INF]))
@settings(deadline=None, max_examples=100, derandomize=True)
def test_bits_that_are_certain_give_no_nan(a, b, c, d, alpha):
    p, q = (Bernoulli(torch.tensor(z).requires_grad_()) for z in ([a, b], [c, d]))
    for measure in (lambda a, b: renyi(a, b, alpha), hellinger, jensen_shannon, total_variation, effective_sample_size):
        value = measure(p, q)
        assert value.item() >= 0.0
        if value.item() < INF:
            gradients = torch.autograd.grad(value, (p.logits, q.logits), allow_unused=True)
            assert all(g is None or g.isfinite().all() for g in gradients)


number = st.floats(-20, 20)


@given(*[st.lists(number, min_size=2, max_size=2)] * 4, st.sampled_from([0.3, 2.0, 7.0, INF]))
@settings(deadline=None, max_examples=150, derandomize=True)
def test_any_normals_give_no_nan(mean_p, log_std_p, mean_q, log_std_q, alpha):
    numbers = (torch.tensor(x, dtype=torch.float64).requires_grad_() for x in (mean_p, log_std_p, mean_q, log_std_q))
    a, b, c, d = numbers
    p, q = DiagGaussian(a, b), DiagGaussian(c, d)
    values = [renyi(p, q, alpha), hellinger(p, q), total_variation(p[..., :1], q[..., :1])]
    for value in values:
        assert value.item() >= 0.0
        if value.item() < INF:
            gradients = torch.autograd.grad(value, (a, b, c, d), allow_unused=True, retain_graph=True)
            assert all(g is None or g.isfinite().all() for g in gradients)


# Refused.
@pytest.mark.parametrize(
    ("measure", "p", "q", "text"),
    [
        (
            jensen_shannon,
            MAKE[DiagGaussian](),
            MAKE[DiagGaussian](),
            "the Jensen-Shannon divergence between DiagGaussian",
        ),
        (total_variation, MAKE[Beta](), MAKE[Beta](), "the total variation between Beta"),
        (total_variation, *pair(DiagGaussian), "the total variation, where covariances differ"),
        (total_variation, *pair(FullGaussian), "the total variation, where covariances differ"),
        (hellinger, mixture(), mixture(), "Hellinger's distance between GaussianMixture"),
        (lambda p, q: renyi(p, q, INF), *pair(FullGaussian), "the Rényi divergence of infinite order"),
        (hellinger, MAKE[Beta](), MAKE[DiagGaussian](), "Hellinger's distance between Beta and DiagGaussian"),
    ],
)
def test_what_has_no_closed_form_is_refused_with_what_there_is(measure, p, q, text):
    with pytest.raises(
        NoClosedForm,
        match=rf"^no closed form for {text}.*; allowed: (estimate_divergence\(p, q, '[a-z_]+'\)|the families .*)$",
    ) as error:
        measure(p, q)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("measure", [jensen_shannon, total_variation])
def test_more_than_4096_joint_outcomes_are_not_enumerated(measure):
    p = Bernoulli(torch.zeros(12))
    assert measure(p, p).item() == pytest.approx(0.0, abs=1e-12)
    for q in (Bernoulli(torch.zeros(13)), MultiCategorical(torch.zeros(65 + 64), (65, 64))):
        with pytest.raises(NoClosedForm, match="> 4096 joint outcomes"):
            measure(q, q)


@pytest.mark.parametrize("alpha", [0, -1.0, math.nan])
def test_orders_that_are_none_are_refused(alpha):
    with pytest.raises(ValueError, match=r"^alpha = .*; allowed: > 0"):
        renyi(normal(0.0, 1.0), normal(1.0, 1.0), alpha)


def test_nan_in_a_policy_is_not_hidden():
    broken, whole = normal(math.nan, 1.0), normal(0.0, 1.0)
    for measure in (hellinger, total_variation, jeffreys, effective_sample_size, lambda p, q: renyi(p, q, 2.0)):
        assert measure(broken, whole).isnan()
        assert measure(whole, broken).isnan()
    broken, whole = Categorical(torch.tensor([math.nan, 0.0])), Categorical(torch.zeros(2))
    for measure in (hellinger, total_variation, jensen_shannon, lambda p, q: renyi(p, q, INF)):
        assert measure(broken, whole).isnan()
        assert measure(whole, broken).isnan()


# What a review found.
def squashed_in_torch(mean):
    return td.TransformedDistribution(td.Normal(torch.tensor([mean]), 1.0), [td.TanhTransform()])


def test_a_bijection_does_change_distances_between_actions():
    with pytest.raises(NoClosedForm, match="no closed form for W_2"):
        wasserstein(squashed_in_torch(0.0), squashed_in_torch(5.0))


def test_settings_of_transforms_that_do_not_fit_are_refused_in_one_line():
    p, q = (
        td.TransformedDistribution(td.Normal(torch.zeros(n), 1.0), [td.AffineTransform(torch.zeros(n), 2.0)])
        for n in (2, 3)
    )
    with pytest.raises(NoClosedForm, match="has no record"):
        jeffreys(p, q)


def test_equal_full_gaussians_are_at_distance_zero_with_gradient_zero():
    for seed in range(20):
        p = MAKE[FullGaussian](seed=seed)
        for distance in (wasserstein, hellinger):
            q = p.map(lambda x: x.clone().requires_grad_())
            value = distance(p, q)
            value.backward()
            assert value.item() == 0.0
            assert not any(x.grad.any() for x in q.parameters)


def test_arrays_beside_tensors_give_tensors():
    p, q = MAKE[DiagGaussian](4, seed=1), MAKE[DiagGaussian](4, seed=2).map(lambda x: x.requires_grad_())
    for divergence in (kl_divergence, jeffreys, hellinger):
        value = divergence(p.map(lambda x: x.numpy()), q)
        torch.testing.assert_close(value, divergence(p, q))
        assert value.requires_grad


def test_second_derivatives_of_total_variation_and_wasserstein_are_those_of_differences():
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape, scale=1.0):
        x = scale * torch.randn(*shape, dtype=torch.float64, generator=generator)
        return x.requires_grad_()

    def between(m, s, n, t):
        return total_variation(DiagGaussian(m, s), DiagGaussian(n, t))

    def moved(m, x, n, y):
        lower = [z.tril(-1) + torch.diag_embed(z.diagonal(dim1=-2, dim2=-1).exp()) for z in (x, y)]
        return wasserstein(FullGaussian(m, lower[0]), FullGaussian(n, lower[1]))

    assert torch.autograd.gradgradcheck(between, [leaf(5, 1) for _ in range(4)])
    for scale in (1.0, 0.0):  # with equal singular values, too
        fields = leaf(2, 3), leaf(2, 3, 3, scale=scale), leaf(1, 3), leaf(1, 3, 3, scale=scale)
        assert torch.autograd.gradcheck(moved, fields)
        assert torch.autograd.gradgradcheck(moved, fields)
    x = torch.ones((), dtype=torch.float64, requires_grad=True)
    full = [FullGaussian(torch.zeros(2).double(), torch.tensor([[1.0, 0.0], [a, 2.0]]).double()) for a in (0.5, -1.0)]
    second = wasserstein(full[0].map(lambda field: x * field), full[1])
    for _ in range(2):
        (second,) = torch.autograd.grad(second, x, create_graph=True)
    with pytest.raises(RuntimeError, match="no third derivative here; allowed: the first and the second"):
        torch.autograd.grad(second, x)


@pytest.mark.parametrize(
    "shapes",
    [(2.0, 3.0, 3.0, 2.0), (0.3, 0.3, 0.3, 0.4), (0.1, 0.02, 0.1, 0.04), (50.0, 2.0, 60.0, 3.0), (5.0, 5.0, 2.0, 2.0)],
)
def test_betas_of_one_dimension_have_exact_distances(shapes):
    """By Simpson's rule on a fine grid of log-odds, where nothing is singular."""
    a, b, c, d = shapes
    u = np.linspace(-60.0 / min(a, c) - 5.0, 60.0 / min(b, d) + 5.0, 400_001)
    left, right = np.logaddexp(0.0, -u), np.logaddexp(0.0, u)
    p, q = (np.exp(-x * left - y * right - special.betaln(x, y)) for x, y in ((a, b), (c, d)))
    m = 0.5 * (p + q)
    expected = integrate.simpson(0.5 * (special.rel_entr(p, m) + special.rel_entr(q, m)), x=u)
    pair = [Beta(*(torch.tensor([[x]], dtype=torch.float64) for x in shape)) for shape in ((a, b), (c, d))]
    assert jensen_shannon(*pair).item() == pytest.approx(expected, rel=1e-8)
    expected = integrate.simpson(0.5 * np.abs(p - q), x=u)
    assert total_variation(*pair).item() == pytest.approx(expected, rel=1e-5)
    if min(shapes) >= 1.0:
        fields = [x.requires_grad_() for r in pair for x in r.parameters]
        for function in (jensen_shannon, total_variation):
            between = lambda a, b, c, d, f=function: f(Beta(a, b), Beta(c, d))  # noqa: E731
            assert torch.autograd.gradcheck(between, fields)
            assert torch.autograd.gradgradcheck(between, fields)


def test_equal_betas_and_betas_of_several_dimensions():
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    for function in (jensen_shannon, total_variation):
        value = function(Beta(x, x), Beta(x.detach(), x.detach()))
        assert value.item() == 0.0
        assert torch.autograd.grad(value, x)[0].item() == 0.0
        with pytest.raises(TypeError, match="estimate_divergence"):
            function(Beta(*2 * [torch.ones(2)]), Beta(*2 * [2.0 * torch.ones(2)]))
