"""Every family's KL and what belongs to it: by quadrature, enumeration, torch's formulas and finite differences."""

import math

import numpy as np
import pytest
import torch
from families import GAUSSIAN, MAKE, NVEC, every_family, integrals, leaves, line, lower, randn, to_torch, torch_kl
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special
from torch import Tensor
from torch import distributions as td

from klrl.kl import (
    cross_entropy,
    entropy,
    fisher_product,
    kl_covariance_part,
    kl_divergence,
    kl_gradient,
    kl_mean_part,
    kl_per_dimension,
    reverse_kl,
)
from klrl.kl.families import matched
from klrl.policy.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    DiagGaussian,
    FullGaussian,
    GaussianMixture,
    MultiCategorical,
    NoClosedForm,
    SquashedGaussian,
)

batches = pytest.mark.parametrize(
    ("p_batch", "q_batch"), [((), ()), ((4,), (4,)), ((2, 3), (2, 3)), ((), (4,)), ((2, 1), (3,))]
)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def close(x, y, rtol=1e-9):
    torch.testing.assert_close(x, y, rtol=rtol, atol=1e-13)


@every_family
@batches
def test_kl_entropy_and_cross_entropy_are_the_integrals_that_define_them(family, p_batch, q_batch):
    p, q = MAKE[family](*p_batch, seed=1), MAKE[family](*q_batch, seed=2)
    kl = integrals(p, q, lambda log_p, log_q: np.exp(log_p) * (log_p - log_q))
    assert kl_divergence(p, q).shape == torch.broadcast_shapes(p_batch, q_batch)
    close(kl_divergence(p, q), kl)
    close(reverse_kl(q, p), kl)
    close(cross_entropy(p, q), integrals(p, q, lambda log_p, log_q: -np.exp(log_p) * log_q))
    close(entropy(p), integrals(p, p, lambda log_p, _: -np.exp(log_p) * log_p))


@every_family
@batches
def test_the_parts_of_an_action_add_up(family, p_batch, q_batch):
    p, q = MAKE[family](*p_batch, seed=1), MAKE[family](*q_batch, seed=2)
    parts = {Categorical: 1, FullGaussian: 1, MultiCategorical: len(NVEC), Bernoulli: 3}.get(family, 2)
    assert kl_per_dimension(p, q).shape == (*torch.broadcast_shapes(p_batch, q_batch), parts)
    close(kl_per_dimension(p, q).sum(-1), torch_kl(p, q))


@pytest.mark.parametrize("family", GAUSSIAN)
def test_mean_and_covariance_part_are_the_kl_with_the_other_held_equal(family):
    p, q = MAKE[family](4, seed=1), MAKE[family](4, seed=2)
    (mean, shape), (other_mean, other_shape) = p.parameters, q.parameters
    close(kl_mean_part(p, q), torch_kl(family(mean, other_shape), q))
    close(kl_covariance_part(p, q), torch_kl(family(other_mean, shape), q))
    for part in (kl_mean_part, kl_covariance_part):
        as_numpy = part(*(r.map(lambda x: x.numpy()) for r in (p, q)))
        assert isinstance(as_numpy, np.ndarray)
        np.testing.assert_allclose(as_numpy, part(p, q).numpy())


@every_family
def test_torch_objects_and_numpy_records_give_the_same_numbers(family):
    p, q = MAKE[family](4, seed=1), MAKE[family](4, seed=2)
    expected = torch_kl(p, q)
    np.testing.assert_allclose(kl_divergence(p.map(lambda x: x.numpy()), q.map(lambda x: x.numpy())), expected, 1e-10)
    if family is not MultiCategorical:
        close(kl_divergence(to_torch(p), to_torch(q)), expected)
        close(kl_divergence(p, to_torch(q)), expected)


@pytest.mark.parametrize("family", [f for f in MAKE if f is not MultiCategorical])
def test_the_kl_of_float32_torch_objects_is_accurate_at_1e_8_nats(family):
    p = MAKE[family](50, seed=1)
    q = p.map(lambda x: x + 1e-4 * randn(*x.shape, seed=3))
    a, b = (to_torch(r.map(lambda x: x.float())) for r in (p, q))
    measured = kl_divergence(a, b)
    read = matched(a, b)  # what rounding made of the numbers
    exact = integrals(read.p[:5], read.q[:5], bregman)
    assert measured.dtype == torch.float32
    torch.testing.assert_close(measured[:5].double(), exact, rtol=1e-3, atol=1e-11)


def bregman(log_p, log_q):
    """p log p/q - p + q, whose rounding does not show in small integrals."""
    return np.exp(log_p) * (np.expm1(log_q - log_p) - (log_q - log_p))


# Derivatives.
@every_family
def test_the_fisher_product_is_the_hessian_of_torchs_kl_times_the_tangent(family):
    p, tangent = MAKE[family](seed=1), [randn(*x.shape, seed=i) for i, x in enumerate(MAKE[family]().parameters)]
    tangent = [v.tril() if v.ndim == 2 else v for v in tangent]

    def kl(*q):
        return torch_kl(p, p.with_parameters(*q))

    _, product = torch.autograd.functional.hvp(kl, p.parameters, tuple(tangent))
    for ours, theirs in zip(fisher_product(p, tuple(tangent)), product, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


@every_family
@pytest.mark.parametrize("step", [0.01, 0.3, 1.0])
def test_the_gradient_of_kl_is_that_of_finite_differences_of_torchs(family, step):
    p = MAKE[family](seed=1)
    q = p.with_parameters(
        *(a + step * (b - a) for a, b in zip(p.parameters, MAKE[family](seed=2).parameters, strict=True))
    )
    for i, (x, gradient) in enumerate(zip(q.parameters, kl_gradient(p, q), strict=True)):
        for j in np.ndindex(*x.shape):
            h, ends = 1e-6, []
            for sign in (1.0, -1.0):
                moved = [y.clone() for y in q.parameters]
                moved[i][j] += sign * h
                ends.append(torch_kl(p, q.with_parameters(*moved)).item())
            assert gradient[j].item() == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-5, abs=1e-7)


@every_family
@both_dtypes
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_kl_of_equals_is_exactly_zero_and_so_is_its_gradient(family, scale, dtype):
    p = MAKE[family](20, seed=1)
    if family in (DiagGaussian, SquashedGaussian):
        p = family(p.mean, p.log_std + math.log(scale))
    elif family in (FullGaussian, Beta):
        p = family(*(scale * x for x in p.parameters))
    p, q = (leaves(p.map(lambda x: x.to(dtype))) for _ in range(2))
    kl = kl_divergence(p, q)
    kl.sum().backward()
    assert torch.equal(kl, torch.zeros(20, dtype=dtype))
    for x in (*p.parameters, *q.parameters):
        assert torch.equal(x.grad, torch.zeros_like(x))


# float32, against float64 or long doubles on the same float32 numbers.
def exact_categorical(p_logits, q_logits):
    z_p, z_q = (np.asarray(z, np.longdouble) for z in (p_logits, q_logits))
    log_p, log_q = (z - np.log(np.exp(z).sum(-1, keepdims=True)) for z in (z_p, z_q))
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def exact_kl(p, q):
    """By formulas from textbooks, or quadrature, in numbers with more digits."""
    a, b = ([np.asarray(x, np.longdouble) for x in r.parameters] for r in (p, q))
    match p:
        case Categorical():
            return exact_categorical(a[0], b[0])
        case MultiCategorical():
            ends = np.cumsum(NVEC)[:-1]
            pairs = zip(np.split(a[0], ends, -1), np.split(b[0], ends, -1), strict=True)
            return sum(exact_categorical(x, y) for x, y in pairs)
        case Bernoulli():
            return exact_categorical(*(np.stack([0 * x, x], -1) for x in (a[0], b[0]))).sum(-1)
        case DiagGaussian() | SquashedGaussian():
            terms = b[1] - a[1] + (np.exp(2 * a[1]) + (a[0] - b[0]) ** 2) / (2 * np.exp(2 * b[1]))
            return (terms - np.longdouble(0.5)).sum(-1)
        case FullGaussian():
            (m, L), (n, K) = ([x.astype(np.float64) for x in y] for y in (a, b))
            M, z = np.linalg.solve(K, L), np.linalg.solve(K, (m - n)[..., None])[..., 0]
            log_det = np.log(np.linalg.det(M @ np.swapaxes(M, -1, -2)))
            return 0.5 * ((M**2).sum((-2, -1)) - m.shape[-1] - log_det + (z**2).sum(-1))
        case Beta():
            t, w = (y[:, None, None] for y in line(Beta))
            logs = [
                (c - 1) * special.log_expit(t) + (d - 1) * special.log_expit(-t) - special.betaln(c, d)
                for c, d in ([y.astype(np.float64) for y in x] for x in (a, b))
            ]
            return (w * bregman(*logs)).sum((0, -1))


@every_family
@pytest.mark.parametrize("nats", [1.5e-8, 1e-6, 1e-4, 1e-2, 1.0, 60.0])
def test_float32_kl_is_accurate_from_1e_8_to_1e2_nats(family, nats):
    p = MAKE[family](200, seed=1)
    tangent = tuple(0.3 * randn(*x.shape, seed=7 + i) for i, x in enumerate(p.parameters))
    if family is FullGaussian:
        tangent = (tangent[0], tangent[1].tril())
    product = fisher_product(p, tangent)
    curvature = sum(
        (v * f).flatten(1).sum(-1) for v, f in zip(tangent, product, strict=True)
    )  # KL ~ 1/2 step^2 curvature
    step = (2.0 * nats / curvature).sqrt().clamp_max(40.0 if family not in (Beta, FullGaussian) else 3.0)
    moved = [x + step.reshape(-1, *[1] * (x.ndim - 1)) * v for x, v in zip(p.parameters, tangent, strict=True)]
    if family is Beta:
        moved = [x.clamp_min(0.6) for x in moved]
    if family is FullGaussian:
        moved[1] = moved[1].tril(-1) + torch.diag_embed(moved[1].diagonal(dim1=-2, dim2=-1).abs().clamp_min(0.05))
    a, b = (r.map(lambda x: x.float()) for r in (p, p.with_parameters(*moved)))
    measured, exact = kl_divergence(a, b), exact_kl(a, b).astype(np.float64)
    assert measured.dtype == torch.float32
    assert (measured >= 0.0).all()
    assert (exact > 1e-8).mean() > 0.5
    assert (np.abs(measured.numpy() - exact) <= 1e-3 * np.maximum(exact, 1e-8)).all()


# Properties.
numbers = st.floats(-4, 4, width=32)


def record_of(family, numbers):
    """One state, of eight numbers."""
    x = torch.tensor(numbers, dtype=torch.float32)
    match family.__name__:
        case "Categorical":
            return Categorical(x)
        case "MultiCategorical":
            return MultiCategorical(x, (3, 5))
        case "Bernoulli":
            return Bernoulli(x)
        case "FullGaussian":
            return FullGaussian(x[:2], lower(x[2:6].reshape(2, 2)))
        case "Beta":
            return Beta(x[:4].exp(), x[4:].exp())
    return family(x[:4], x[4:])


@every_family
@given(st.lists(numbers, min_size=8, max_size=8), st.lists(numbers, min_size=8, max_size=8))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_kl_is_never_negative_nor_nan_and_its_gradients_are_finite(family, x, y):
    p, q = (leaves(record_of(family, z)) for z in (x, y))
    kl = kl_divergence(p, q)
    kl.backward()
    assert kl.item() >= 0.0
    assert (kl.item() == 0.0) or x != y
    assert all(z.grad.isfinite().all() for z in (*p.parameters, *q.parameters))


@given(st.lists(numbers, min_size=6, max_size=6), st.lists(numbers, min_size=6, max_size=6), st.permutations(range(6)))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_merging_actions_never_adds_kl(x, y, order):
    p, q = (torch.tensor(z, dtype=torch.float64)[list(order)] for z in (x, y))
    merged = [Categorical(torch.stack([z[:2].logsumexp(0), z[2:4].logsumexp(0), z[4:].logsumexp(0)])) for z in (p, q)]
    assert kl_divergence(*merged) <= kl_divergence(Categorical(p), Categorical(q)) + 1e-12


def test_a_map_that_loses_nothing_changes_no_kl():
    p, q = MAKE[DiagGaussian](4, seed=1), MAKE[DiagGaussian](4, seed=2)
    squashed = [SquashedGaussian(*r.parameters) for r in (p, q)]
    assert torch.equal(kl_divergence(*squashed), kl_divergence(p, q))
    rescaled = [DiagGaussian(3.0 * r.mean - 1.0, r.log_std + math.log(3.0)) for r in (p, q)]
    close(kl_divergence(*rescaled), kl_divergence(p, q))
    mirrored = [Beta(r.beta, r.alpha) for r in (MAKE[Beta](4, seed=1), MAKE[Beta](4, seed=2))]
    close(kl_divergence(*mirrored), kl_divergence(MAKE[Beta](4, seed=1), MAKE[Beta](4, seed=2)))


# Refused.
def test_a_mixture_has_no_kl_and_the_error_names_what_there_is():
    mix = GaussianMixture(torch.zeros(2), torch.zeros(2, 1), torch.zeros(2, 1))
    with pytest.raises(NoClosedForm, match=r"^no closed form for KL between .*kl_upper_bound.*estimate_divergence"):
        kl_divergence(mix, mix)


# Support. Heads and bits: by hand, head by head.
INF = math.inf
MASKS = [  # logits of p and q, KL(p||q) in units of log 2
    (MultiCategorical, ([0.0, 0.0, 0.0, -INF], [0.0, 0.0, 0.0, -INF]), 0.0),
    (MultiCategorical, ([0.0, 0.0, 0.0, -INF], [0.0, 0.0, 0.0, 0.0]), 1.0),
    (MultiCategorical, ([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, -INF]), INF),
    (MultiCategorical, ([0.0, -INF, -INF, 0.0], [0.0, 0.0, 0.0, 0.0]), 2.0),
    (Bernoulli, ([0.0, INF], [0.0, INF]), 0.0),
    (Bernoulli, ([0.0, INF], [0.0, 0.0]), 1.0),
    (Bernoulli, ([-INF, INF], [0.0, 0.0]), 2.0),
    (Bernoulli, ([0.0, 0.0], [0.0, -INF]), INF),
    (Bernoulli, ([0.0, INF], [0.0, -INF]), INF),
]


def masked(family, logits, dtype=torch.float64):
    z = torch.tensor(logits, dtype=dtype)
    return MultiCategorical(z, (2, 2)) if family is MultiCategorical else family(z)


@both_dtypes
@pytest.mark.parametrize(("family", "logits", "bits"), MASKS)
def test_impossible_choices_in_heads_and_bits(family, logits, bits, dtype):
    p, q = (leaves(masked(family, z, dtype)) for z in logits)
    kl = kl_divergence(p, q)
    assert kl.item() == pytest.approx(bits * math.log(2.0), rel=1e-6)
    assert kl_divergence(p, q, base=2).item() == pytest.approx(bits, rel=1e-6)
    assert entropy(p).isfinite().all()
    if bits < INF:
        kl.backward()
        assert p.logits.grad.isfinite().all()
        assert q.logits.grad.isfinite().all()
        assert kl_divergence(p, q, support="raise").item() == kl.item()
        assert kl_divergence(p, q, support="smooth").item() == pytest.approx(kl.item(), rel=1e-5, abs=1e-11)
        return
    with pytest.raises(ValueError, match=r"^q gives probability 0 to something p does in 1 of 1 states") as error:
        kl_divergence(p, q, support="raise")
    with pytest.raises(ValueError, match=r"^p gives probability 0 to something q does .* KL\(q\|\|p\) is infinite"):
        reverse_kl(q, p, support="raise")
    assert "\n" not in str(error.value)


# KL(p || (1 - e) q + e p), e = 1e-6, of p = (1/2, 1/2) and q = (1, 0): mixture (1 - e/2, e/2).
def test_smoothed_kl_by_hand():
    p, q = Categorical(torch.zeros(2, dtype=torch.float64)), Categorical(torch.tensor([0.0, -INF], dtype=torch.float64))
    by_hand = 0.5 * math.log(0.5 / (1 - 0.5e-6)) + 0.5 * math.log(0.5 / 0.5e-6)
    assert kl_divergence(p, q, support="smooth").item() == pytest.approx(by_hand, rel=1e-9)
    assert cross_entropy(p, q, support="smooth").item() == pytest.approx(by_hand + math.log(2.0), rel=1e-9)


def test_an_unknown_support_is_refused():
    p = MAKE[Categorical]()
    with pytest.raises(ValueError, match=r"^support = 'clip'; allowed: inf, raise, smooth$"):
        kl_divergence(p, p, support="clip")


def test_masks_of_minus_1e8_in_torch_objects_are_masks():
    free, shut = torch.zeros(4), torch.tensor([0.0, 0.0, 0.0, -1e8])
    p, q = (torch.distributions.Categorical(logits=z) for z in (free, shut))
    assert kl_divergence(p, q).item() == INF
    assert kl_divergence(q, p).item() == pytest.approx(math.log(4 / 3), rel=1e-6)
    assert kl_divergence(q, q).item() == 0.0


def test_a_mask_is_any_logit_whose_probability_is_0_in_float64():
    for log_prob in (-100.0, -700.0, -744.0, -746.0, -1e4, -65504.0, -3e38):
        q = td.Categorical(logits=torch.tensor([0.0, 0.0, log_prob], dtype=torch.float64))
        bits = td.Bernoulli(logits=torch.tensor([log_prob, -log_prob], dtype=torch.float64))
        p, coins = td.Categorical(logits=torch.zeros(3).double()), td.Bernoulli(torch.full((2,), 0.5).double())
        impossible = math.exp(log_prob) == 0.0
        assert kl_divergence(p, q).isinf().item() == impossible
        assert kl_divergence(coins, bits).isinf().tolist() == [impossible] * 2
        assert impossible or kl_divergence(p, q).item() == pytest.approx(-math.log(1.5) - log_prob / 3.0)


@every_family
def test_half_precision_is_computed_in_float32(family):
    p, q = MAKE[family](seed=1), MAKE[family](seed=2)
    for dtype in (torch.float16, torch.bfloat16):
        short = [r.with_parameters(*(x.to(dtype) for x in r.parameters)) for r in (p, q)]
        wide = [r.map(Tensor.float) for r in short]
        for function in (kl_divergence, reverse_kl, cross_entropy, lambda a, b: entropy(a)):
            assert function(*short).dtype == torch.float32
            torch.testing.assert_close(function(*short), function(*wide), rtol=0.0, atol=0.0)
        tangent = tuple(0.1 * x for x in wide[1].parameters)
        for ours, theirs in zip(fisher_product(short[0], tangent), fisher_product(wide[0], tangent), strict=True):
            torch.testing.assert_close(ours, theirs)
        action = short[0].sample()
        assert short[0].log_prob(action).dtype == dtype
        assert short[0].log_prob(action).isfinite().all()
    arrays = [r.map(lambda x: x.half().numpy()) for r in (p, q)]
    assert kl_divergence(*arrays).dtype == np.float32


def test_half_precision_does_not_lose_a_small_kl_of_many_actions():
    z = torch.randn(4, 20_000, generator=torch.Generator().manual_seed(0)).bfloat16()
    moved = (z.float() + 0.02 * torch.randn(4, 20_000, generator=torch.Generator().manual_seed(1))).bfloat16()
    log_p, log_q = (x.double().log_softmax(-1) for x in (z, moved))
    expected = (log_p.exp() * (log_p - log_q)).sum(-1)
    torch.testing.assert_close(
        kl_divergence(Categorical(z), Categorical(moved)).double(), expected, rtol=1e-3, atol=0.0
    )


logit = st.floats(-50, 50, width=32) | st.just(-INF) | st.just(INF)


@given(st.lists(logit, min_size=4, max_size=4), st.lists(logit, min_size=4, max_size=4))
@settings(deadline=None, max_examples=150, derandomize=True)
def test_any_bits_give_no_nan_and_finite_gradients_where_kl_is_finite(x, y):
    p, q = (Bernoulli(torch.tensor(z).requires_grad_()) for z in (x, y))
    kl = kl_per_dimension(p, q)
    assert (kl >= 0.0).all()
    kl[kl.isfinite()].sum().backward()
    expected = [abs(b) == INF and a != b for a, b in zip(x, y, strict=True)]
    assert kl.isinf().tolist() == expected
    assert p.logits.grad.isfinite().all()
    assert q.logits.grad.isfinite().all()


def scaled_tanh(mean, std, scale=2.0):
    return td.TransformedDistribution(td.Normal(mean, std), [td.TanhTransform(), td.AffineTransform(1.0, scale)])


def test_one_bijection_of_both_leaves_the_kl_of_the_bases():
    (m, n), (s, t) = randn(2, 4, 3, seed=1), randn(2, 4, 3, seed=2).exp()
    bases = td.kl_divergence(td.Normal(m, s), td.Normal(n, t))
    torch.testing.assert_close(kl_divergence(scaled_tanh(m, s), scaled_tanh(n, t)), bases)
    p, q = td.Independent(scaled_tanh(m, s), 1), td.Independent(scaled_tanh(n, t), 1)
    torch.testing.assert_close(kl_divergence(p, q), bases.sum(-1))
    torch.testing.assert_close(kl_divergence(td.LogNormal(m, s), td.LogNormal(n, t)), bases)


def test_different_bijections_have_no_closed_form():
    p, q = (scaled_tanh(torch.zeros(2), torch.ones(2), scale) for scale in (2.0, 3.0))
    with pytest.raises(TypeError, match=r"^TransformedDistribution.* has no record"):
        kl_divergence(p, q)


def test_a_one_hot_categorical_is_a_categorical():
    p, q = (torch.softmax(randn(4, 5, seed=i), -1) for i in (1, 2))
    expected = td.kl_divergence(td.Categorical(p), td.Categorical(q))
    torch.testing.assert_close(kl_divergence(td.OneHotCategorical(p), td.OneHotCategorical(q)), expected)


def test_maps_that_are_no_bijections_of_what_they_are_given_are_refused():
    p, q = td.Normal(torch.zeros(2, 3), 1.0), td.Normal(torch.ones(2, 3), 2.0)
    double, nothing = td.AffineTransform(0.0, 2.0), td.AffineTransform(0.0, 0.0)
    exp, power, constant = td.ExpTransform(), td.PowerTransform(torch.tensor(2.0)), td.PowerTransform(torch.tensor(0.0))
    chain, some = td.ComposeTransform([double, exp]), td.AffineTransform(0.0, torch.tensor([1.0, 0.0, 2.0]))
    good = [exp, power], [chain, power], [td.SigmoidTransform(), exp], [double, td.TanhTransform()]
    bad = (
        [power],
        [exp.inv],
        [td.AbsTransform()],
        [nothing],
        [double, power],
        [chain, double, power],
        [some],
        [exp, constant],
    )
    for maps in good:
        kl = kl_divergence(*(td.TransformedDistribution(x, maps) for x in (p, q)))
        torch.testing.assert_close(kl, td.kl_divergence(p, q))
    for maps in bad:
        with pytest.raises(TypeError, match=r"^TransformedDistribution.* has no record"):
            kl_divergence(*(td.TransformedDistribution(x, maps) for x in (p, q)))
    joined, collapsing = (td.CatTransform([exp, x], dim=-1, lengths=[1, 2]) for x in (double, nothing))
    kl = kl_divergence(*(td.TransformedDistribution(x, [joined]) for x in (p, q)))
    torch.testing.assert_close(kl, td.kl_divergence(p, q))
    with pytest.raises(TypeError, match="has no record"):
        kl_divergence(*(td.TransformedDistribution(x, [collapsing]) for x in (p, q)))
