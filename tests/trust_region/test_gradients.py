"""Derivatives by a record's fields: of log-probability, entropy, KL and every trust region, against autograd."""

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import distributions as td

from klrl.kl import fisher_product, kl_divergence, kl_gradient
from klrl.policy.arrays import exp
from klrl.policy.distributions import Categorical, DiagGaussian, Distribution
from klrl.trust_region import (
    SPO,
    Adaptive,
    All,
    Change,
    Clip,
    Fixed,
    KLConstraint,
    KLPenalty,
    Rollback,
    TrulyPPO,
    TrustRegion,
)

INF = math.inf
BATCHES = [(), (4,), (2, 3)]


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def categorical(*batch, seed=0):
    return Categorical(2.0 * randn(*batch, 5, seed=seed))


def masked(*batch, seed=0):
    """Two of six actions are impossible."""
    logits = randn(*batch, 6, seed=seed)
    logits[..., [1, 4]] = -INF
    return Categorical(logits)


def gaussian(*batch, seed=0):
    x = randn(2, *batch, 3, seed=seed)
    return DiagGaussian(x[0], 0.7 * x[1])


@dataclass(frozen=True, eq=False)
class Laplace(Distribution):
    """A family of a user's own, without a derivative: density e^{-|x - loc| / scale} / (2 scale)."""

    loc: object
    log_scale: object

    def sample(self, generator=None):
        return self.loc + 0.3 * exp(self.log_scale)  # any action will do

    def mode(self):
        return self.loc

    def log_prob(self, action):
        return -(abs(action - self.loc) / exp(self.log_scale) + self.log_scale + math.log(2.0)).sum(-1)

    def entropy(self):
        return (1.0 + math.log(2.0) + self.log_scale).sum(-1)


def laplace(*batch, seed=0):
    x = randn(2, *batch, 3, seed=seed)
    return Laplace(x[0], 0.7 * x[1])


def oracle(family, fields):
    """The same distribution of torch's."""
    if family is Categorical:
        return td.Categorical(logits=fields[0])
    base = td.Normal if family is DiagGaussian else td.Laplace
    return td.Independent(base(fields[0], fields[1].exp()), 1)


def by_autograd(function, record):
    """Derivative of a function of the fields."""
    leaves = [x.clone().requires_grad_() for x in record.parameters]
    total = function(leaves).sum()
    return torch.autograd.grad(total, leaves, materialize_grads=True, allow_unused=True)


def act(record, seed=1):
    return record.sample(torch.Generator().manual_seed(seed))


def as_kind(x, kind):
    if isinstance(x, Distribution):
        return x.map(lambda y: as_kind(y, kind))
    return x.numpy().copy() if kind == "arrays" else x.clone()


def is_kind(x, kind):
    return isinstance(x, (np.ndarray, np.generic) if kind == "arrays" else torch.Tensor)


def agree(got, expected, kind, rtol=1e-9, atol=1e-12):
    """One array or tensor per field, as the record's are, with the expected numbers."""
    for g, e in zip(got, expected, strict=True):
        assert is_kind(g, kind)
        torch.testing.assert_close(torch.as_tensor(g), e, rtol=rtol, atol=atol)


kinds = pytest.mark.parametrize("kind", ["arrays", "tensors"])
batches = pytest.mark.parametrize("batch", BATCHES, ids=str)
SEEDS = range(3)
seeds = pytest.mark.parametrize("seed", SEEDS)
known = pytest.mark.parametrize("make", [categorical, gaussian])
families = pytest.mark.parametrize("make", [categorical, masked, gaussian, laplace])


# Log-probability and entropy.
@families
@kinds
@batches
@seeds
def test_the_score_is_the_derivative_of_the_log_probability(make, kind, batch, seed):
    p = make(*batch, seed=seed)
    action, family = act(p, seed), type(p)
    got = as_kind(p, kind).score(as_kind(action, kind))
    agree(got, by_autograd(lambda x: family(*x).log_prob(action), p), kind)
    agree(got, by_autograd(lambda x: oracle(family, x).log_prob(action), p), kind)


@families
@kinds
@batches
@seeds
def test_the_entropy_gradient_is_the_derivative_of_the_entropy(make, kind, batch, seed):
    p = make(*batch, seed=seed)
    family, got = type(p), as_kind(p, kind).entropy_gradient()
    agree(got, by_autograd(lambda x: family(*x).entropy(), p), kind)
    if make is not masked:
        agree(got, by_autograd(lambda x: oracle(family, x).entropy(), p), kind)


@kinds
def test_where_actions_are_impossible_the_entropy_gradient_is_that_of_the_others(kind):
    p = masked(4)
    possible = p.logits[0].isfinite()
    (got,) = as_kind(p, kind).entropy_gradient()
    (among,) = by_autograd(lambda x: td.Categorical(logits=x[0]).entropy(), Categorical(p.logits[:, possible]))
    agree([got[:, possible.numpy()]], [among], kind)
    assert not got[:, ~possible.numpy()].any()


@known
@kinds
@batches
def test_float32_gives_what_float64_does_to_rounding(make, kind, batch):
    p = make(*batch)
    action, single = act(p), as_kind(p.map(torch.Tensor.float), kind)
    taken = as_kind(action if make is categorical else action.float(), kind)
    exact = (*p.score(action), *p.entropy_gradient())
    for g, e in zip((*single.score(taken), *single.entropy_gradient()), exact, strict=True):
        assert torch.as_tensor(g).dtype == torch.float32
        torch.testing.assert_close(torch.as_tensor(g).double(), e, rtol=1e-5, atol=1e-5)


@kinds
@batches
@pytest.mark.parametrize("make", [categorical, masked])
def test_the_score_of_a_categorical_has_mean_zero_over_all_its_actions(make, kind, batch):
    p = make(*batch)
    k, mean = p.logits.shape[-1], torch.zeros_like(p.logits)
    for i in range(k):
        action = torch.full(batch, i)
        (score,) = as_kind(p, kind).score(as_kind(action, kind))
        mean += p.probs[..., i, None] * torch.as_tensor(score)
    assert mean.abs().max() < 1e-15


def quadrature(p, kind):
    """Nodes of Gauss and Hermite as actions in every dimension at once, [q, *B, d], with weights of the normal."""
    nodes, weights = hermegauss(8)  # exact for polynomials up to degree 15
    z = torch.tensor(nodes).reshape(-1, *[1] * p.mean.ndim)
    actions = p.mean + p.log_std.exp() * z
    at_all = p.map(lambda x: x.expand(actions.shape).clone())
    return as_kind(at_all, kind), as_kind(actions, kind), torch.tensor(weights / math.sqrt(2.0 * math.pi))


@kinds
@batches
def test_the_score_of_a_gaussian_has_mean_zero_and_the_known_covariance(kind, batch):
    p = gaussian(*batch)
    at_all, actions, weights = quadrature(p, kind)
    by_mean, by_log_std = map(torch.as_tensor, at_all.score(actions))
    mean = lambda x: torch.tensordot(weights, x, 1)  # noqa: E731
    for x in (by_mean, by_log_std, by_mean * by_log_std):
        assert mean(x).abs().max() < 1e-10
    torch.testing.assert_close(mean(by_mean**2), p.log_std.mul(-2.0).exp())
    torch.testing.assert_close(mean(by_log_std**2), torch.full_like(p.mean, 2.0))


@known
def test_scores_average_to_zero_over_samples_within_four_standard_errors(make):
    n = 20_000
    p = make().map(lambda x: x.expand(n, -1).clone())
    for score in p.score(act(p)):
        assert (score.mean(0).abs() <= 4.0 * score.std(0) / math.sqrt(n)).all()


@families
@kinds
@batches
def test_records_of_arrays_say_what_records_of_tensors_say(make, kind, batch):
    p = make(*batch)
    action, same = act(p), as_kind(p, kind)
    taken = as_kind(action, kind)
    assert same.batch_shape == p.batch_shape == batch
    functions = {
        "log_prob": (same.log_prob(taken), p.log_prob(action)),
        "entropy": (same.entropy(), p.entropy()),
        "mode": (same.mode(), p.mode()),
        "indexed": (same[..., None].parameters[0], p[..., None].parameters[0]),
    }
    if isinstance(p, Categorical):
        functions["probs"] = (same.probs, p.probs)
        functions["log_probs"] = (same.log_probs, p.log_probs)
    if isinstance(p, DiagGaussian):
        functions["std"] = (same.std, p.std)
    for name, (got, expected) in functions.items():
        assert is_kind(got, kind), name
        torch.testing.assert_close(torch.as_tensor(got), expected, rtol=1e-12, atol=1e-14, msg=name)


@pytest.mark.parametrize("make", [categorical, masked, gaussian])
@batches
@seeds
def test_records_of_arrays_draw_what_records_of_tensors_draw(make, batch, seed):
    p = make(*batch)
    drawn, expected = act(as_kind(p, "arrays"), seed), act(p, seed)
    assert is_kind(drawn, "arrays")
    assert drawn.dtype == expected.numpy().dtype
    torch.testing.assert_close(torch.as_tensor(drawn), expected, rtol=1e-12, atol=1e-14)


# KL.
@known
@kinds
@batches
@seeds
def test_the_kl_gradient_is_the_derivative_by_the_second_argument(make, kind, batch, seed):
    p, q = make(*batch, seed=seed), make(*batch, seed=seed + 50)
    got = kl_gradient(as_kind(p, kind), as_kind(q, kind))
    here = oracle(type(p), p.parameters)
    agree(got, by_autograd(lambda x: td.kl_divergence(here, oracle(type(p), x)), q), kind)
    other_way = by_autograd(lambda x: td.kl_divergence(oracle(type(p), x), here), q)
    by_first = by_autograd(lambda x: td.kl_divergence(oracle(type(p), x), oracle(type(p), q.parameters)), p)
    for g, reverse, first in zip(got, other_way, by_first, strict=True):
        scale = torch.as_tensor(g).norm()
        assert (torch.as_tensor(g) - reverse).norm() > 0.05 * scale
        assert (torch.as_tensor(g) - first).norm() > 0.05 * scale


@known
def test_torchs_distributions_have_the_kl_gradient_of_their_records(make):
    p, q = make(4), make(4, seed=1)
    agree(kl_gradient(*(oracle(type(x), x.parameters) for x in (p, q))), kl_gradient(p, q), "tensors")


@kinds
def test_an_impossible_action_has_no_kl_gradient_and_does_not_change_that_of_the_others(kind):
    p, q = masked(4), masked(4, seed=1)
    possible = p.logits[0].isfinite()
    some, others = (Categorical(x.logits[:, possible]) for x in (p, q))
    (got,) = kl_gradient(as_kind(p, kind), as_kind(q, kind))
    here = oracle(Categorical, some.parameters)
    agree(
        [got[:, possible.numpy()]],
        by_autograd(lambda x: td.kl_divergence(here, td.Categorical(logits=x[0])), others),
        kind,
    )
    assert not got[:, ~possible.numpy()].any()


@known
@kinds
@pytest.mark.parametrize("step", [1e-2, 1e-3, 1e-4, 1e-5])
def test_float32_kl_gradients_of_tiny_changes_are_as_exact_as_the_fields_allow(make, kind, step):
    p = make(200).map(torch.Tensor.float)
    q = p.map(lambda x: x + step * randn(*x.shape, seed=9, dtype=torch.float32))
    exact = oracle(type(p), [x.double() for x in p.parameters])
    expected = by_autograd(lambda x: td.kl_divergence(exact, oracle(type(p), x)), q.map(torch.Tensor.double))
    # A probability is rounded to 6e-8 of itself; a Gaussian's differences are taken before any rounding.
    absolute = 4e-7 if make is categorical else 0.0
    for g, e in zip(kl_gradient(as_kind(p, kind), as_kind(q, kind)), expected, strict=True):
        error = torch.as_tensor(g).double() - e
        assert error.norm() <= 1e-6 * e.norm() + absolute * math.sqrt(e.numel() / e.shape[-1])


@pytest.mark.parametrize("make", [categorical, masked, gaussian])
def test_the_kl_gradient_is_zero_between_equals(make):
    p = make(4)
    assert not any(x.any() for x in kl_gradient(p, p.map(torch.clone)))


@pytest.mark.parametrize(
    ("p", "q"), [(categorical(2), gaussian(2)), (laplace(2), laplace(2, seed=1))], ids=["mixed", "own"]
)
def test_a_kl_without_a_closed_form_has_no_gradient_either(p, q):
    with pytest.raises(TypeError, match="no closed form for KL between"):
        kl_gradient(p, q)
    with pytest.raises(TypeError, match="no Fisher matrix for Laplace"):
        fisher_product(laplace(2), laplace(2).parameters)


@pytest.mark.parametrize("make", [categorical, masked, gaussian])
@batches
@seeds
def test_the_kl_of_arrays_is_an_array_and_that_of_tensors(make, batch, seed):
    p, q = make(*batch, seed=seed), make(*batch, seed=seed + 50)
    got, expected = kl_divergence(as_kind(p, "arrays"), as_kind(q, "arrays")), kl_divergence(p, q)
    assert is_kind(got, "arrays")
    assert got.shape == batch
    torch.testing.assert_close(torch.as_tensor(got), expected, rtol=0, atol=0)


# Fisher.
def split(v, sizes):
    return tuple(v.split(sizes))


def dense_fisher(p):
    """The Hessian of torch's KL at one state, by all fields in one vector."""
    sizes, here = [len(x) for x in p.parameters], oracle(type(p), p.parameters)
    kl = lambda v: td.kl_divergence(here, oracle(type(p), split(v, sizes)))  # noqa: E731
    return torch.autograd.functional.hessian(kl, torch.cat(p.parameters))


@known
@kinds
@batches
@seeds
def test_the_fisher_product_is_the_hessian_of_the_kl_times_a_tangent(make, kind, batch, seed):
    p = make(*batch, seed=seed)
    v = tuple(randn(*x.shape, seed=seed + 30 + i) for i, x in enumerate(p.parameters))
    flat = [x.reshape(-1, x.shape[-1]) for x in (*p.parameters, *v)]
    m = len(v)
    rows = []
    for state in zip(*flat, strict=True):
        F = dense_fisher(type(p)(*state[:m]))
        rows.append(split(F @ torch.cat(state[m:]), [len(x) for x in state[m:]]))
    expected = [torch.stack(x).reshape(y.shape) for x, y in zip(zip(*rows, strict=True), v, strict=True)]
    agree(fisher_product(as_kind(p, kind), tuple(as_kind(x, kind) for x in v)), expected, kind)


@pytest.mark.parametrize("make", [categorical, masked])
@batches
def test_the_fisher_product_of_a_categorical_is_its_scores_covariance(make, batch):
    p = make(*batch)
    v, k = randn(*p.logits.shape, seed=3), p.logits.shape[-1]
    expected = torch.zeros_like(v)
    for i in range(k):
        (score,) = p.score(torch.full(batch, i))
        expected += p.probs[..., i, None] * score * (score * v).sum(-1, keepdim=True)
    agree(fisher_product(p, (v,)), [expected], "tensors")


@batches
def test_the_fisher_product_of_a_gaussian_is_its_scores_covariance(batch):
    p = gaussian(*batch)
    v = [randn(*p.mean.shape, seed=3 + i) for i in range(2)]
    at_all, actions, weights = quadrature(p, "tensors")
    scores = at_all.score(actions)
    inner = sum(s * x for s, x in zip(scores, v, strict=True))  # dimensions are independent
    expected = [torch.tensordot(weights, s * inner, 1) for s in scores]
    agree(fisher_product(p, tuple(v)), expected, "tensors")


# Trust regions.
@dataclass(frozen=True)
class OwnRollback(Clip):
    """Wang et al. 2020 (PPO-RB): outside the interval the surrogate falls again. Only the surrogate is written."""

    slope: float = 0.3

    def surrogate(self, change):
        excess = change.ratio - change.ratio.clip(1.0 - self.clip_range, 1.0 + self.clip_range)
        return super().surrogate(change) - self.slope * excess * change.advantage


@dataclass(frozen=True)
class Reverse(TrustRegion):
    """Only the penalty is written: the other KL, and something of the ratio."""

    def penalty(self, change):
        return 2.0 * change.kl_reverse + 0.5 * (change.ratio - 1.0) ** 2


@dataclass(frozen=True)
class Own(TrustRegion):
    """Both are written; neither derivative."""

    def surrogate(self, change):
        return change.log_ratio * change.advantage - 0.1 * change.new.entropy()

    def penalty(self, change):
        return change.kl * change.kl_reverse


@dataclass(frozen=True)
class Weighted(KLPenalty):
    """The derivative of what is inherited must not be used for the new penalty."""

    def penalty(self, change):
        return super().penalty(change) * change.advantage**2


@dataclass(frozen=True)
class Steeper(OwnRollback):
    """A region of a region of one's own."""

    def surrogate(self, change):
        return 3.0 * super().surrogate(change)


REGIONS = [
    TrustRegion(),
    Clip(0.1),
    Clip(0.5),
    SPO(0.1),
    Rollback(0.1, 0.3),
    TrulyPPO(0.02, 5.0),
    All(TrulyPPO(0.001), KLPenalty(Fixed(3.0)), KLConstraint(0.1)),
    KLConstraint(0.02),
    KLConstraint(0.02, on_exit="stop"),
    KLPenalty(Fixed(3.0)),
    KLPenalty(Adaptive(target_kl=0.01)),
    All(Clip(0.2), KLPenalty(Adaptive(target_kl=0.01)), KLConstraint(0.1)),
    All(KLPenalty(Fixed(2.0)), KLPenalty(Fixed(3.0))),
    All(),
    OwnRollback(0.1),
    Reverse(),
    Own(),
    Weighted(Fixed(2.0)),
    Steeper(0.1),
    All(OwnRollback(0.1), Reverse(), KLPenalty(Fixed(3.0))),
]
every_region = pytest.mark.parametrize("region", REGIONS, ids=repr)


def change(make, seed=0, step=0.5, n=100):
    old = make(n, seed=seed)
    new = old.map(lambda x: x + step * randn(*x.shape, seed=seed + 70))
    action = act(old, seed)
    return Change(old, new, action, old.log_prob(action), randn(n, seed=seed + 80))


def change_as(c, kind):
    return Change(*(as_kind(x, kind) for x in (c.old, c.new, c.action, c.log_prob, c.advantage)))


def gradient_of(hook, c):
    """Autograd's derivative of a hook of a region by the new policy."""
    data = (c.action, c.log_prob, c.advantage)
    return by_autograd(lambda x: torch.as_tensor(hook(Change(c.old, type(c.new)(*x), *data))) + 0.0 * x[0].sum(), c.new)


@every_region
@known
@kinds
def test_the_gradients_of_every_region_are_those_of_its_gain_and_its_penalty(region, make, kind):
    for seed, step in product(SEEDS, [0.0, 0.02, 0.5]):
        c = change(make, seed, step)
        same = change_as(c, kind)
        agree(region.surrogate_gradient(same), gradient_of(region.surrogate, c), kind, rtol=1e-9, atol=1e-11)
        expected, got = gradient_of(region.penalty, c), region.penalty_gradient(same)
        if got is None:
            assert not any(x.any() for x in expected)
        else:
            agree(got, expected, kind, rtol=1e-7, atol=1e-11)


@known
@seeds
def test_the_changes_here_are_clipped_at_some_states_on_both_sides_and_not_at_others(make, seed):
    c = change(make, seed)
    for eps in (0.05, 0.1, 0.2):
        above, below = (c.ratio > 1 + eps) & (c.advantage > 0), (c.ratio < 1 - eps) & (c.advantage < 0)
        (g, *_) = Clip(eps).surrogate_gradient(c)
        assert above.any()
        assert below.any()
        assert not g[above | below].any()
        assert (g[~(above | below)] != 0.0).any(-1).all()


@every_region
@known
@kinds
def test_gains_and_penalties_of_arrays_are_those_of_tensors(region, make, kind):
    c = change(make)
    agree([region.surrogate(change_as(c, kind))], [region.surrogate(c)], kind)
    got, expected = region.penalty(change_as(c, kind)), region.penalty(c)
    assert isinstance(got, float) or is_kind(got, kind)
    torch.testing.assert_close(torch.as_tensor(got), torch.as_tensor(expected), rtol=1e-12, atol=1e-14)


@known
@kinds
def test_float32_gradients_of_regions_agree_with_float64(make, kind):
    c = change(make)
    old, new = (p.map(torch.Tensor.float) for p in (c.old, c.new))
    action = c.action if make is categorical else c.action.float()
    single = Change(old, new, action, c.log_prob.float(), c.advantage.float())
    for region in REGIONS:
        got = [region.surrogate_gradient(change_as(single, kind)), region.penalty_gradient(change_as(single, kind))]
        for g, e in zip(got, (region.surrogate_gradient(c), region.penalty_gradient(c)), strict=True):
            for x, y in zip(g or (), e or (), strict=True):
                assert torch.as_tensor(x).dtype == torch.float32
                assert (torch.as_tensor(x).double() - y).norm() <= 1e-5 * y.norm() + 1e-30


@dataclass(frozen=True)
class Constant(TrustRegion):
    """A penalty that does not depend on the policy."""

    def penalty(self, change):
        return 0.5


@kinds
@pytest.mark.parametrize("make", [categorical, masked, gaussian])
def test_what_does_not_depend_on_the_policy_has_gradient_zero(make, kind):
    c = change(make, step=0.0)
    got = Constant().penalty_gradient(change_as(c, kind))
    agree(got, [torch.zeros_like(x) for x in c.new.parameters], kind)


def test_a_derivative_that_a_region_writes_itself_is_used():
    class Written(Clip):
        def surrogate(self, change):
            return change.log_ratio

        def surrogate_gradient(self, change):
            return tuple(7.0 + 0.0 * x for x in change.new.parameters)

    c = change(categorical)
    for region in (Written(0.2), All(Written(0.2), KLConstraint())):
        assert (region.surrogate_gradient(c)[0] == 7.0).all()


@kinds
@pytest.mark.parametrize(
    "region",
    [TrustRegion(), Clip(0.2), SPO(0.1), Rollback(0.1), KLConstraint(), All(Clip(0.2)), OwnRollback(0.1)],
    ids=repr,
)
def test_a_family_of_ones_own_has_the_gradients_of_its_gain(region, kind):
    c = change(laplace)
    agree(region.surrogate_gradient(change_as(c, kind)), gradient_of(region.surrogate, c), kind)


@every_region
@kinds
def test_gradients_change_nothing_and_can_be_taken_where_no_graph_is_recorded(region, kind):
    c = change_as(change(gaussian), kind)
    given = [*c.old.parameters, *c.new.parameters, c.action, c.log_prob, c.advantage]
    before = [torch.as_tensor(x).clone() for x in given]
    with torch.no_grad():
        first, second = (region.surrogate_gradient(c) + (region.penalty_gradient(c) or ()) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
        assert not torch.as_tensor(a).requires_grad
    assert all(torch.equal(torch.as_tensor(x), b) for x, b in zip(given, before, strict=True))


# Written for tensors, as a user would.
@dataclass(frozen=True)
class InTorch(TrustRegion):
    def surrogate(self, change):
        return torch.clamp(change.ratio, max=1.1) * change.advantage

    def penalty(self, change):
        return change.kl.square()


class Doubling:
    def surrogate(self, change):
        return 2.0 * change.ratio * change.advantage


@dataclass(frozen=True)
class Mixed(Doubling, TrustRegion):
    """Its surrogate comes from a class that knows nothing of regions."""


@pytest.mark.parametrize("kind", ["arrays", "tensors"])
def test_a_region_written_in_torch_works_on_arrays_too(kind):
    old, new = categorical(6, seed=0), categorical(6, seed=1)
    action = torch.arange(6) % 5
    c = Change(old, new, action, old.log_prob(action), randn(6, seed=2))
    expected = (
        InTorch().surrogate(c),
        InTorch().penalty(c),
        *InTorch().surrogate_gradient(c),
        *InTorch().penalty_gradient(c),
    )
    if kind == "arrays":
        old, new = old.map(torch.Tensor.numpy), new.map(torch.Tensor.numpy)
        c = Change(old, new, *(x.numpy() for x in (action, c.log_prob, c.advantage)))
    found = (
        InTorch().surrogate(c),
        InTorch().penalty(c),
        *InTorch().surrogate_gradient(c),
        *InTorch().penalty_gradient(c),
    )
    for a, b in zip(found, expected, strict=True):
        assert isinstance(a, np.ndarray) == (kind == "arrays")
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_a_gain_from_another_class_has_its_own_gradient():
    old, new = categorical(6, seed=0), categorical(6, seed=1)
    action = torch.arange(6) % 5
    c = Change(old, new, action, old.log_prob(action), randn(6, seed=2))
    torch.testing.assert_close(Mixed().surrogate_gradient(c)[0], 2.0 * TrustRegion().surrogate_gradient(c)[0])


@pytest.mark.parametrize("step", [1e-3, 1e-4, 1e-5])
def test_float32_kl_gradients_of_close_categoricals_lose_nothing(step):
    z, d = randn(200, 5, seed=3, dtype=torch.float32), randn(200, 5, seed=4, dtype=torch.float32)
    p, q = Categorical(z), Categorical(z + step * d)
    exact = kl_gradient(p.map(torch.Tensor.double), q.map(torch.Tensor.double))[0]
    for found in (kl_gradient(p, q)[0], kl_gradient(p.map(torch.Tensor.numpy), q.map(torch.Tensor.numpy))[0]):
        assert np.linalg.norm(np.asarray(found) - exact.numpy()) < 1e-5 * exact.norm()


@dataclass(frozen=True)
class OneNumber(TrustRegion):
    def penalty(self, change):
        return change.kl.mean()


@dataclass(frozen=True)
class Wide(TrustRegion):
    def surrogate(self, change):
        return change.advantage[:, None].expand(-1, 3)


@pytest.mark.parametrize("kind", ["arrays", "tensors"])
@pytest.mark.parametrize(
    ("region", "hook", "shape"), [(OneNumber(), "penalty", r"\[\]"), (Wide(), "surrogate", r"\[6, 3\]")]
)
def test_a_gain_or_penalty_that_is_not_one_number_per_state_is_refused(region, hook, shape, kind):
    p, action = categorical(6), torch.arange(6) % 5
    c = Change(p, p, action, p.log_prob(action), randn(6))
    if kind == "arrays":
        p = p.map(torch.Tensor.numpy)
        c = Change(p, p, *(x.numpy() for x in (action, c.log_prob, c.advantage)))
    for name in (hook, f"{hook}_gradient"):
        with pytest.raises(ValueError, match=rf"has shape {shape}; allowed: one number per state, \[6\]"):
            getattr(region, name)(c)
