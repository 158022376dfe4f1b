"""KL(p||q): by hand, by enumeration and quadrature, against torch in float64 and long doubles in float32."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import distributions as td

from klrl.kl import (
    cross_entropy,
    entropy,
    kl_covariance_part,
    kl_divergence,
    kl_gradient,
    kl_mean_part,
    kl_per_dimension,
    reverse_kl,
)
from klrl.kl.families.bregman import phi
from klrl.policy.distributions import Categorical, DiagGaussian

INF, LOG2 = math.inf, math.log(2.0)
DIMENSIONS = pytest.mark.parametrize("d", [1, 2, 6, 17])
BATCHES = pytest.mark.parametrize(
    ("p_batch", "q_batch"), [((), ()), ((4,), (4,)), ((2, 3), (2, 3)), ((), (4,)), ((2, 3), (3,)), ((2, 1), (1, 3))]
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(*batch, d=3, seed=0):
    x = randn(2, *batch, d, seed=seed)
    return DiagGaussian(x[0], 0.7 * x[1])


def categorical(*batch, d=3, seed=0):
    """``d`` is the number of free log-probabilities: d + 1 actions."""
    return Categorical(2.0 * randn(*batch, d + 1, seed=seed))


def from_probs(*probs):
    return Categorical(torch.tensor(probs, dtype=torch.float64).log())


def normal(mean, std):
    return DiagGaussian(torch.tensor([mean], dtype=torch.float64), torch.tensor([std], dtype=torch.float64).log())


def to_torch(record):
    if isinstance(record, Categorical):
        return td.Categorical(logits=record.logits)
    return td.Independent(td.Normal(record.mean, record.std), 1)


families = pytest.mark.parametrize("make", [categorical, gaussian])


# Numbers written out.
#   p = N(0, 1), q = N(1, 2^2): KL(p||q) = log 2 + (1 + 1) / 8 - 1/2 = log 2 - 1/4
#                               KL(q||p) = -log 2 + (4 + 1) / 2 - 1/2 = 2 - log 2
#   p = (1/2, 1/2), q = (1/4, 3/4): KL(p||q) = 1/2 log 2 + 1/2 log 2/3 = 1/2 log 4/3
#                                   KL(q||p) = 1/4 log 1/2 + 3/4 log 3/2 = 3/4 log 3 - log 2
BY_HAND = [
    (normal(0.0, 1.0), normal(1.0, 2.0), LOG2 - 0.25, 2.0 - LOG2),
    (from_probs(0.5, 0.5), from_probs(0.25, 0.75), 0.5 * math.log(4 / 3), 0.75 * math.log(3.0) - LOG2),
]


@pytest.mark.parametrize(("p", "q", "forward", "reverse"), BY_HAND, ids=["gaussian", "categorical"])
def test_the_first_argument_is_the_one_that_is_averaged_over(p, q, forward, reverse):
    assert kl_divergence(p, q).item() == pytest.approx(forward, rel=1e-12)
    assert kl_divergence(q, p).item() == pytest.approx(reverse, rel=1e-12)
    assert reverse_kl(p, q).item() == pytest.approx(reverse, rel=1e-12)
    assert abs(forward - reverse) > 0.01 * forward


@families
@DIMENSIONS
@BATCHES
def test_kl_agrees_with_torch_in_float64_and_broadcasts(make, d, p_batch, q_batch):
    p, q = make(*p_batch, d=d, seed=1), make(*q_batch, d=d, seed=2)
    oracle = td.kl_divergence(to_torch(p), to_torch(q))
    kl = kl_divergence(p, q)
    assert kl.shape == torch.broadcast_shapes(p_batch, q_batch)
    torch.testing.assert_close(kl, oracle, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(kl_divergence(to_torch(p), to_torch(q)), oracle, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(kl_divergence(p, to_torch(q)), oracle, rtol=1e-10, atol=0.0)


def gaussian_expectation(p, function):
    """E_p[f] over the 2^d points mean +- std: exact where f is a sum of quadratics of one coordinate each."""
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=p.mean.shape[-1])))
    return function(p.mean.numpy() + signs * p.std.numpy()).mean()


def gaussian_logpdf(p):
    return lambda x: stats.norm.logpdf(x, p.mean.numpy(), p.std.numpy()).sum(-1)


@DIMENSIONS
def test_gaussian_kl_and_cross_entropy_are_the_expectations_that_define_them(d):
    p, q = gaussian(d=d, seed=1), gaussian(d=d, seed=2)
    log_p, log_q = gaussian_logpdf(p), gaussian_logpdf(q)
    kl = gaussian_expectation(p, lambda x: log_p(x) - log_q(x))
    assert kl_divergence(p, q).item() == pytest.approx(kl, rel=1e-10)
    assert entropy(p).item() == pytest.approx(gaussian_expectation(p, lambda x: -log_p(x)), rel=1e-10)
    assert cross_entropy(p, q).item() == pytest.approx(gaussian_expectation(p, lambda x: -log_q(x)), rel=1e-10)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.1), (0.3, 0.8), (-2.0, 3.0)])
def test_gaussian_kl_is_the_integral_that_defines_it(mean, std):
    p, q = stats.norm(0.5, 0.7), stats.norm(mean, std)
    integral, _ = integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -10, 11, epsabs=1e-12)
    assert kl_divergence(normal(0.5, 0.7), normal(mean, std)).item() == pytest.approx(integral, rel=1e-9)


@pytest.mark.parametrize("k", [2, 3, 7, 18, 50])
def test_categorical_kl_and_cross_entropy_are_the_sums_that_define_them(k):
    p, q = categorical(d=k - 1, seed=1), categorical(d=k - 1, seed=2)
    a, b = (np.exp(z) / np.exp(z).sum() for z in (p.logits.numpy(), q.logits.numpy()))
    assert kl_divergence(p, q).item() == pytest.approx(math.fsum(a * np.log(a / b)), rel=1e-11)
    assert entropy(p).item() == pytest.approx(-math.fsum(a * np.log(a)), rel=1e-11)
    assert cross_entropy(p, q).item() == pytest.approx(-math.fsum(a * np.log(b)), rel=1e-11)


def test_the_kl_of_a_product_is_the_sum_of_the_kls():
    p, q = gaussian(4, d=6, seed=1), gaussian(4, d=6, seed=2)
    columns = [[td.Normal(r.mean[:, i], r.std[:, i]) for r in (p, q)] for i in range(6)]
    one_by_one = [td.kl_divergence(a, b) for a, b in columns]
    torch.testing.assert_close(kl_per_dimension(p, q), torch.stack(one_by_one, -1))
    torch.testing.assert_close(kl_divergence(p, q), sum(one_by_one))
    assert kl_per_dimension(categorical(4, seed=1), categorical(4, seed=2)).shape == (4, 1)


def test_adding_a_constant_to_all_logits_changes_nothing():
    p, q = categorical(5, d=6, seed=1), categorical(5, d=6, seed=2)
    shifted = Categorical(q.logits + 37.0 * randn(5, 1, seed=3))
    torch.testing.assert_close(kl_divergence(p, shifted), kl_divergence(p, q), rtol=1e-10, atol=0.0)


# p = N(0, 1), q = N(1, 2^2): means 1/2 (1/2)^2 = 1/8, covariances log 2 + 1/8 - 1/2 = log 2 - 3/8.
def test_mean_part_and_covariance_part_by_hand():
    p, q = normal(0.0, 1.0), normal(1.0, 2.0)
    assert kl_mean_part(p, q).item() == pytest.approx(1 / 8, rel=1e-12)
    assert kl_covariance_part(p, q).item() == pytest.approx(LOG2 - 3 / 8, rel=1e-12)


@DIMENSIONS
def test_mean_part_and_covariance_part_are_torchs_kl_with_the_other_held_equal(d):
    p, q = gaussian(4, d=d, seed=1), gaussian(4, d=d, seed=2)
    same_std, same_mean = DiagGaussian(p.mean, q.log_std), DiagGaussian(q.mean, p.log_std)
    torch.testing.assert_close(kl_mean_part(p, q), td.kl_divergence(to_torch(same_std), to_torch(q)))
    torch.testing.assert_close(kl_covariance_part(p, q), td.kl_divergence(to_torch(same_mean), to_torch(q)))
    torch.testing.assert_close(kl_mean_part(p, q) + kl_covariance_part(p, q), kl_divergence(p, q))


# Units.
#   KL((1/2, 1/2) || (1/4, 3/4)) = 1/2 log2(4/3) bits; a fair die with eight sides has 3 bits;
#   the cross-entropy of (1/2, 1/2) from (1/4, 3/4) is 1/2 * 2 + 1/2 * log2(4/3) bits.
def test_base_2_gives_bits():
    p, q, die = from_probs(0.5, 0.5), from_probs(0.25, 0.75), from_probs(*[1 / 8] * 8)
    assert kl_divergence(p, q, base=2).item() == pytest.approx(0.5 * math.log2(4 / 3), rel=1e-12)
    assert reverse_kl(q, p, base=2).item() == pytest.approx(0.5 * math.log2(4 / 3), rel=1e-12)
    assert entropy(die, base=2).item() == pytest.approx(3.0, rel=1e-12)
    assert cross_entropy(p, q, base=2).item() == pytest.approx(1.0 + 0.5 * math.log2(4 / 3), rel=1e-12)


@pytest.mark.parametrize("base", [0, 0.5, 1, -2, math.nan, math.inf])
@pytest.mark.parametrize("measure", [kl_divergence, reverse_kl, cross_entropy, lambda p, q, base: entropy(p, base)])
def test_a_base_without_a_logarithm_is_refused(measure, base):
    with pytest.raises(ValueError, match=r"^base = .*; allowed: None \(nats\) or a number > 1"):
        measure(normal(0.0, 1.0), normal(1.0, 1.0), base=base)


# Identical distributions.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-3, 1e-2, 0.3, 1.0, 30.0, 1e3])
@families
def test_kl_of_a_policy_with_itself_is_exactly_zero_and_so_is_its_gradient(make, scale, dtype):
    one = make(50, d=6).map(lambda x: x.to(dtype))
    if make is categorical:
        one = Categorical(one.logits * min(scale, 100.0))
    else:
        one = DiagGaussian(one.mean, torch.full_like(one.mean, scale).log())
    p, q = (one.map(lambda x: x.clone().requires_grad_()) for _ in range(2))
    kl = kl_divergence(p, q)
    kl.sum().backward()
    assert torch.equal(kl, torch.zeros(50, dtype=dtype))
    assert all(torch.equal(x.grad, torch.zeros_like(x)) for x in (*p.parameters, *q.parameters))


def test_kl_of_a_masked_policy_with_itself_is_exactly_zero_and_so_is_its_gradient():
    logits = torch.tensor([[0.3, -INF, 2.0], [0.0, -INF, -INF]])
    p, q = (Categorical(logits.clone().requires_grad_()) for _ in range(2))
    kl = kl_divergence(p, q)
    kl.sum().backward()
    assert kl.tolist() == [0.0, 0.0]
    assert not p.logits.grad.any()
    assert not q.logits.grad.any()


# Gradients, by finite differences; steps on both sides of the switch from the series to the direct formula.
@pytest.mark.parametrize("step", [0.02, 1.0, 20.0])
@families
def test_gradients_of_kl_are_those_of_finite_differences(make, step):
    p, q = make(3, d=3, seed=1), make(3, d=3, seed=2)
    family, n = type(p), len(p.parameters)
    near = [a + step * (b - a) / 4 for a, b in zip(p.parameters, q.parameters, strict=True)]
    leaves = [x.clone().requires_grad_() for x in (*p.parameters, *near)]
    assert torch.autograd.gradcheck(lambda *x: kl_divergence(family(*x[:n]), family(*x[n:])), leaves)


# float32, against long doubles on the same float32 numbers.
def long_double_categorical(p_logits, q_logits):
    z_p, z_q = np.asarray(p_logits, np.longdouble), np.asarray(q_logits, np.longdouble)
    log_p = z_p - np.log(np.exp(z_p).sum(-1, keepdims=True))
    log_q = z_q - np.log(np.exp(z_q).sum(-1, keepdims=True))
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def long_double_gaussian(mean_p, log_std_p, mean_q, log_std_q):
    mean_p, a, mean_q, b = (np.asarray(x, np.longdouble) for x in (mean_p, log_std_p, mean_q, log_std_q))
    return (b - a + (np.exp(2 * a) + (mean_p - mean_q) ** 2) / (2 * np.exp(2 * b)) - np.longdouble(0.5)).sum(-1)


def assert_accurate(kl, exact):
    """Relative error <= 1e-3 down to 1e-8 nats, below it no worse than at 1e-8; never negative."""
    exact = exact.astype(np.float64)
    assert (exact > 1e-8).sum() > 1000  # the test means something
    assert kl.dtype == torch.float32
    assert (kl >= 0.0).all()
    assert (np.abs(kl.numpy() - exact) <= 1e-3 * np.maximum(exact, 1e-8)).all()


KL = pytest.mark.parametrize("nats", [1.2e-8, 1e-6, 1e-4, 1e-2, 1.0])


@KL
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("k", [2, 3, 10, 50])
def test_float32_categorical_kl_is_accurate_down_to_1e_8_nats(k, scale, nats):
    rng = np.random.default_rng(k)
    z, direction = (scale * rng.uniform(-1, 1, (4000, k))).astype(np.float32), rng.normal(size=(4000, k))
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    variance = (p * (direction - (p * direction).sum(-1, keepdims=True)) ** 2).sum(-1, keepdims=True)
    moved = (z + np.sqrt(2 * nats / variance).clip(max=10.0) * direction).astype(np.float32)  # KL ~ s^2 Var / 2
    kl = kl_divergence(Categorical(torch.tensor(z)), Categorical(torch.tensor(moved)))
    assert_accurate(kl, long_double_categorical(z, moved))


@KL
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@DIMENSIONS
def test_float32_gaussian_kl_is_accurate_down_to_1e_8_nats(d, scale, nats):
    rng, step = np.random.default_rng(d), np.sqrt(2 * nats / d)
    mean, log_std = scale * rng.normal(size=(3000, d)), np.log(scale) + 0.3 * rng.normal(size=(3000, d))
    new_mean = mean + step * scale * rng.normal(size=mean.shape)
    new_log_std = log_std + 0.5 * step * rng.normal(size=mean.shape)
    numbers = [x.astype(np.float32) for x in (mean, log_std, new_mean, new_log_std)]
    tensors = [torch.tensor(x) for x in numbers]
    kl = kl_divergence(DiagGaussian(*tensors[:2]), DiagGaussian(*tensors[2:]))
    assert_accurate(kl, long_double_gaussian(*numbers))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_phi_is_accurate_from_the_smallest_steps_to_the_largest(dtype):
    x = torch.logspace(-6, 1.7, 4000, dtype=torch.float64)
    x = torch.cat([-x.flip(0), x]).to(dtype)
    exact = np.expm1(x.numpy().astype(np.longdouble)) - x.numpy().astype(np.longdouble)
    np.testing.assert_allclose(phi(x).numpy(), exact.astype(np.float64), rtol=1e-6 if dtype == torch.float32 else 1e-11)


# Support.
@pytest.mark.parametrize(
    ("p", "q", "forward", "reverse"),
    [
        ((0.5, 0.5, 0.0), (0.25, 0.75, 0.0), 0.5 * math.log(4 / 3), 0.75 * math.log(3.0) - LOG2),
        ((0.5, 0.5, 0.0), (0.25, 0.25, 0.5), LOG2, INF),
        ((1.0, 0.0, 0.0), (0.5, 0.5, 0.0), LOG2, INF),
        ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), INF, INF),
        ((0.5, 0.5, 0.0), (0.5, 0.0, 0.5), INF, INF),
        ((1.0, 0.0), (1.0, 0.0), 0.0, 0.0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("torch_object", [False, True])
def test_kl_is_infinite_where_q_misses_the_support(p, q, forward, reverse, dtype, torch_object):
    probs = [torch.tensor(x, dtype=dtype) for x in (p, q)]
    a, b = (td.Categorical(probs=x) for x in probs) if torch_object else (Categorical(x.log()) for x in probs)
    assert kl_divergence(a, b).item() == pytest.approx(forward, rel=1e-6)
    assert kl_divergence(b, a).item() == pytest.approx(reverse, rel=1e-6)
    assert cross_entropy(a, b).item() == pytest.approx(entropy(a).item() + forward, rel=1e-6)


def test_a_state_with_infinite_kl_does_not_spoil_its_neighbours():
    p = Categorical(torch.zeros(3, 2, requires_grad=True))
    q = Categorical(torch.tensor([[0.0, 1.0], [0.0, -INF], [2.0, 0.0]], requires_grad=True))
    kl = kl_divergence(p, q)
    kl[[0, 2]].sum().backward()
    assert kl.isfinite().tolist() == [True, False, True]
    # d KL(p||q) / d logits of q = q - p
    torch.testing.assert_close(q.logits.grad[[0, 2]], (q.probs - p.probs).detach()[[0, 2]])
    assert not q.logits.grad[1].any()


logits = st.lists(st.floats(-10, 10, width=32) | st.just(-INF), min_size=6, max_size=6)
supported = logits.filter(lambda z: max(z) > -INF)


@given(supported, supported)
@settings(deadline=None, max_examples=200, derandomize=True)
def test_any_logits_give_the_enumerated_kl_infinite_exactly_where_it_is_and_finite_gradients_elsewhere(z_p, z_q):
    p, q = (Categorical(torch.tensor(z, requires_grad=True)) for z in (z_p, z_q))
    kl = kl_divergence(p, q)
    kl.backward()
    if any(a > -INF and b == -INF for a, b in zip(z_p, z_q, strict=True)):
        assert kl.item() == INF
        return
    terms = [(a, b) for a, b in zip(z_p, z_q, strict=True) if a > -INF]
    log_sum_p, log_sum_q = (np.log(np.exp(np.array(z, np.longdouble)).sum()) for z in (z_p, z_q))
    exact = sum(np.exp(a - log_sum_p) * ((a - log_sum_p) - (b - log_sum_q)) for a, b in terms)
    assert kl.item() == pytest.approx(float(exact), rel=1e-3, abs=1e-11)
    assert p.logits.grad.isfinite().all()
    assert q.logits.grad.isfinite().all()


@pytest.mark.parametrize("gap", [30.0, 89.0, 200.0, 1e4, 1e8])
def test_kl_between_opposite_certainties_is_the_gap_between_their_logits(gap):
    p, q = (Categorical(torch.tensor(z, requires_grad=True)) for z in ([gap, 0.0], [0.0, gap]))
    kl = kl_divergence(p, q)
    kl.backward()
    assert kl.item() == pytest.approx(gap, rel=1e-6)
    torch.testing.assert_close(q.logits.grad, torch.tensor([-1.0, 1.0]))
    assert p.logits.grad.isfinite().all()


def test_nan_in_a_policy_is_not_hidden():
    for broken in (Categorical(torch.tensor([math.nan, 0.0])), Categorical(torch.tensor([-INF, -INF]))):
        assert kl_divergence(broken, Categorical(torch.zeros(2))).isnan()
    assert kl_divergence(normal(math.nan, 1.0), normal(0.0, 1.0)).isnan()


# Refused.
@pytest.mark.parametrize(
    ("p", "q", "names"),
    [
        (categorical(), gaussian(), "Categorical and DiagGaussian"),
        (gaussian(), categorical(), "DiagGaussian and Categorical"),
        (td.Poisson(torch.ones(2)), td.Poisson(torch.ones(2)), "Poisson has no record"),
        (normal(0.0, 1.0), td.Laplace(torch.zeros(1), torch.ones(1)), "Laplace has no record"),
    ],
)
@pytest.mark.parametrize("measure", [kl_divergence, reverse_kl, cross_entropy, kl_per_dimension])
def test_pairs_without_a_closed_form_are_refused_in_one_line(measure, p, q, names):
    first, second = names.split(" and ") if " and " in names else (names, "")
    with pytest.raises(TypeError, match=rf"{first}|{second} and {first}") as error:
        measure(p, q)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", [kl_mean_part, kl_covariance_part])
def test_only_gaussians_have_a_mean_part_and_a_covariance_part(part):
    with pytest.raises(TypeError, match="need two Gaussians, not Categorical and Categorical"):
        part(categorical(), categorical())


@families
def test_different_numbers_of_actions_are_refused(make):
    with pytest.raises(ValueError, match="they must agree"):
        kl_divergence(make(d=2), make(d=3))


def test_a_standard_deviation_below_the_smallest_float_gives_no_nan():
    p = DiagGaussian(torch.tensor([0.3]), torch.tensor([-104.0]))
    assert kl_divergence(p, p).item() == kl_mean_part(p, p).item() == 0.0
    assert kl_divergence(DiagGaussian(torch.tensor([0.0]), torch.tensor([0.0])), p).item() == INF


def test_one_logit_far_away_does_not_spoil_the_others():
    g = torch.Generator().manual_seed(0)
    z, noise = torch.randn(2, 5000, 5, generator=g)
    far = torch.full((5000, 1), -130.0)
    p = Categorical(torch.cat([z, far], -1))
    q = Categorical(torch.cat([z + 3e-4 * noise, far + 70.0], -1))
    assert_accurate(kl_divergence(p, q), long_double_categorical(p.logits.numpy(), q.logits.numpy()))


@pytest.mark.parametrize("make", [categorical, gaussian])
def test_the_gradient_by_a_broadcast_q_is_the_sum(make):
    p, q = make(3, 1, seed=1), make(4, seed=2)
    leaves = q.map(lambda x: x.clone().requires_grad_())
    kl_divergence(p, leaves).sum().backward()
    for ours, leaf in zip(kl_gradient(p, q), leaves.parameters, strict=True):
        torch.testing.assert_close(ours, leaf.grad)
