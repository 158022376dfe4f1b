"""KL between mixtures of normals: bounds hold against quadrature, approximations are near, special cases exact."""

import math

import numpy as np
import pytest
import torch
from families import leaves, mixture, normal
from scipy import stats
from torch import distributions as td

from klrl.kl import kl_divergence, kl_upper_bound, kl_variational
from klrl.policy.distributions import Categorical, DiagGaussian, GaussianMixture, NoClosedForm

pytestmark = pytest.mark.filterwarnings("ignore:.*the standard error cannot be trusted:RuntimeWarning")

INF = math.inf
either = pytest.mark.parametrize("measure", [kl_upper_bound, kl_variational])


def one_dimension(K, seed, *b):
    return mixture(*b, K=K, d=1, seed=seed)


def kl_by_quadrature(p, q):
    """Of one state in one dimension."""
    x = np.arange(-40.0, 40.0, 0.02)
    logs = []
    for r in (p, q):
        w = np.exp(r.logits.numpy()) / np.exp(r.logits.numpy()).sum()
        parts = [
            v * stats.norm.pdf(x, m, s)
            for v, m, s in zip(w, r.mean[:, 0].numpy(), r.log_std[:, 0].exp().numpy(), strict=True)
        ]
        logs.append(np.log(sum(parts) + 1e-300))
    return (np.exp(logs[0]) * (logs[0] - logs[1])).sum() * 0.02


@pytest.mark.parametrize(("K", "L"), [(1, 1), (2, 2), (3, 2), (1, 4), (5, 3)])
@pytest.mark.parametrize("iterations", [1, 2, 100])
def test_the_upper_bound_is_above_the_integral_after_any_number_of_iterations(K, L, iterations):
    p, q = one_dimension(K, 1, 10), one_dimension(L, 2, 10)
    exact = torch.tensor([kl_by_quadrature(p[i], q[i]) for i in range(10)])
    bound = kl_upper_bound(p, q, iterations=iterations)
    assert bound.shape == (10,)
    assert (bound >= exact - 1e-9).all()
    assert (bound >= kl_upper_bound(p, q, iterations=iterations + 1) - 1e-12).all()


def test_the_bound_is_at_most_that_of_convexity():
    p, q = mixture(10, seed=1), mixture(10, seed=2)
    w, v = (r.weights.probs for r in (p, q))
    parts = td.kl_divergence(*(td.Independent(td.Normal(r.mean, r.log_std.exp()), 1) for r in (p, q)))
    convexity = (w * (w.log() - v.log() + parts)).sum(-1)
    assert (kl_upper_bound(p, q) <= convexity + 1e-12).all()


# Two components each, p's far apart, each covered by one of q: the KL is that of matched components, up to e^-200.
def test_far_components_are_matched_whatever_their_order():
    p = GaussianMixture(*(torch.tensor(x, dtype=torch.float64) for x in ([0.0, 1.0], [[0.0], [50.0]], [[0.0], [0.1]])))
    q = GaussianMixture(*(torch.tensor(x, dtype=torch.float64) for x in ([2.0, 0.0], [[50.5], [0.3]], [[0.2], [0.0]])))
    exact = kl_by_quadrature(*(GaussianMixture(r.logits, r.mean - 25.0, r.log_std) for r in (p, q)))  # on the grid
    assert kl_upper_bound(p, q).item() == pytest.approx(exact, rel=1e-6)
    assert kl_variational(p, q).item() == pytest.approx(exact, rel=1e-6)


def test_the_variational_approximation_is_its_formula():
    p, q = mixture(seed=1), mixture(K=4, seed=2)
    w, v = (r.weights.probs for r in (p, q))

    def kl(a, b):
        return td.kl_divergence(td.Normal(a[0], a[1].exp()), td.Normal(b[0], b[1].exp())).sum().item()

    components = [[(r.mean[i], r.log_std[i]) for i in range(len(r.logits))] for r in (p, q)]
    total = 0.0
    for w_a, a in zip(w, components[0], strict=True):
        inside = sum(x * math.exp(-kl(a, b)) for x, b in zip(w, components[0], strict=True))
        across = sum(x * math.exp(-kl(a, b)) for x, b in zip(v, components[1], strict=True))
        total += w_a * math.log(inside / across)
    assert kl_variational(p, q).item() == pytest.approx(float(total), rel=1e-9)
    assert kl_variational(p, q, base=2).item() == pytest.approx(float(total) / math.log(2), rel=1e-9)


def test_the_variational_approximation_is_near_the_integral():
    p, q = one_dimension(3, 1, 50), one_dimension(2, 2, 50)
    exact = torch.tensor([kl_by_quadrature(p[i], q[i]) for i in range(50)])
    error = (kl_variational(p, q) - exact).abs()
    assert (error <= (kl_upper_bound(p, q) - exact).abs()).float().mean() > 0.5
    assert error.mean() <= 0.35 * exact.mean()


@either
def test_one_component_each_gives_the_kl(measure):
    p, q = mixture(5, K=1, seed=1), mixture(5, K=1, seed=2)
    exact = td.kl_divergence(*(td.Normal(r.mean[:, 0], r.log_std[:, 0].exp()) for r in (p, q))).sum(-1)
    torch.testing.assert_close(measure(p, q), exact, rtol=1e-10, atol=0.0)
    bells = [DiagGaussian(r.mean[:, 0], r.log_std[:, 0]) for r in (p, q)]
    torch.testing.assert_close(measure(*bells), exact, rtol=1e-10, atol=0.0)
    torch.testing.assert_close(measure(p, bells[1]), exact, rtol=1e-10, atol=0.0)


@either
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_are_exactly_0_apart_with_zero_gradients(measure, dtype):
    p, q = (leaves(mixture(10, K=4, seed=1).map(lambda x: x.to(dtype))) for _ in range(2))
    value = measure(p, q)
    value.sum().backward()
    assert value.dtype == dtype
    assert torch.equal(value, torch.zeros(10, dtype=dtype))
    if measure is kl_upper_bound:  # the other one is no divergence: it has no minimum there
        assert all((x.grad.abs() <= 1e-12).all() for x in (*p.parameters, *q.parameters))


@either
def test_components_without_weight_do_not_count(measure):
    p, q = mixture(10, seed=1), mixture(10, seed=2)
    fewer = [GaussianMixture(r.logits[:, 1:], r.mean[:, 1:], r.log_std[:, 1:]) for r in (p, q)]
    masked = [
        leaves(GaussianMixture(r.logits.clone().index_fill(1, torch.tensor(0), -INF), r.mean, r.log_std))
        for r in (p, q)
    ]
    value = measure(*masked)
    torch.testing.assert_close(value, measure(*fewer), rtol=1e-6, atol=1e-9)
    value.sum().backward()
    assert all(x.grad.isfinite().all() for r in masked for x in r.parameters)
    assert measure(p, masked[1]).isfinite().all()


@either
def test_states_broadcast_and_torch_objects_and_numpy_records_are_taken(measure):
    p, q = mixture(2, 1, seed=1), mixture(3, K=2, seed=2)
    value = measure(p, q)
    assert value.shape == (2, 3)
    torch.testing.assert_close(value[1, 2], measure(p[1, 0], q[2]))
    objects = [
        td.MixtureSameFamily(td.Categorical(logits=r.logits), td.Independent(td.Normal(r.mean, r.log_std.exp()), 1))
        for r in (p, q)
    ]
    torch.testing.assert_close(measure(*objects), value)
    np.testing.assert_allclose(measure(*(r.map(lambda x: x.numpy()) for r in (p, q))), value.numpy())


def test_the_gradient_of_the_bound_is_that_of_finite_differences_after_any_number_of_turns():
    p, q = mixture(2, seed=1), mixture(2, K=2, seed=2)
    for iterations in (1, 7, 60):

        def bound(*x, iterations=iterations):
            return kl_upper_bound(GaussianMixture(*x[:3]), GaussianMixture(*x[3:]), iterations=iterations)

        assert torch.autograd.gradcheck(bound, [x.clone().requires_grad_() for x in (*p.parameters, *q.parameters)])


# Refused.
@either
def test_other_families_and_dimensions_are_refused(measure):
    with pytest.raises(NoClosedForm, match=r"of the KL between GaussianMixture and Categorical; allowed: Gaussian"):
        measure(mixture(), Categorical(torch.zeros(2)))
    with pytest.raises(ValueError, match=r"^p has 2 and q has 1 action dimensions; they must agree$"):
        measure(mixture(), normal(0.0, 1.0))


def test_no_iterations_and_no_closed_form():
    with pytest.raises(ValueError, match=r"^iterations = 0; allowed: >= 1$"):
        kl_upper_bound(mixture(), mixture(), iterations=0)
    with pytest.raises(NoClosedForm, match=r"kl_upper_bound\(p, q\), kl_variational\(p, q\) or estimate_divergence"):
        kl_divergence(mixture(), mixture())
