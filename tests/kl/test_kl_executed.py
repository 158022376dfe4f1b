"""KL of clipped actions: by quadrature, by hand, below the KL of what was drawn."""

import math

import numpy as np
import pytest
import torch
from families import MAKE, leaves, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import distributions as td

from klrl.kl import kl_divergence, kl_executed
from klrl.policy.distributions import Categorical, DiagGaussian, NoClosedForm

INF = math.inf


def by_quadrature(mean_p, std_p, mean_q, std_q, low, high):
    """Two point masses, and an integral in between."""
    p, q = stats.norm(mean_p, std_p), stats.norm(mean_q, std_q)
    total = 0.0
    for log_P, log_Q in ((p.logcdf(low), q.logcdf(low)), (p.logsf(high), q.logsf(high))):
        total += math.exp(log_P) * (log_P - log_Q) if log_P > -INF else 0.0
    ends = max(low, mean_p - 12 * std_p), min(high, mean_p + 12 * std_p)
    if ends[0] < ends[1]:
        total += integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), *ends, epsabs=1e-13, limit=200)[0]
    return total


@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 1.0), (-INF, 1.0), (-1.0, INF), (-INF, INF), (0.3, 0.4), (-50.0, 50.0)]
)
@pytest.mark.parametrize(
    "numbers", [(2.0, 1.0, 2.2, 1.0), (0.0, 0.5, 0.3, 0.7), (-6.0, 1.0, 3.0, 0.8), (0.1, 3.0, 0.0, 0.2)]
)
def test_it_is_the_sum_of_point_masses_and_an_integral(numbers, low, high):
    p, q = normal(*numbers[:2]), normal(*numbers[2:])
    expected = by_quadrature(*numbers, low, high)
    assert kl_executed(p, q, low, high).item() == pytest.approx(expected, rel=1e-8, abs=1e-11)
    assert kl_executed(p, q, low, high, base=2).item() == pytest.approx(expected / math.log(2), rel=1e-8, abs=1e-11)


# Means 2 and 2.2 beyond a box that ends at 1: most of what differs is clipped away.
def test_what_is_clipped_away_is_not_counted():
    p, q = normal(2.0, 1.0), normal(2.2, 1.0)
    assert kl_divergence(p, q).item() == pytest.approx(0.02)
    assert kl_executed(p, q, -1.0, 1.0).item() == pytest.approx(0.0091, abs=5e-5)
    assert kl_executed(p, q, -INF, INF).item() == pytest.approx(0.02, rel=1e-12)


def test_dimensions_have_bounds_of_their_own_and_batches_broadcast():
    p, q = MAKE[DiagGaussian](2, 1, seed=1), MAKE[DiagGaussian](3, seed=2)
    low, high = torch.tensor([-1.0, -INF]), np.array([0.5, 1.0])
    executed = kl_executed(p, q, low, high)
    assert executed.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        numbers = [(p.mean[i, 0], p.std[i, 0], q.mean[j], q.std[j])]
        terms = [by_quadrature(*(x[k].item() for x in numbers[0]), float(low[k]), float(high[k])) for k in range(2)]
        assert executed[i, j].item() == pytest.approx(sum(terms), rel=1e-8)
    objects = [td.Independent(td.Normal(r.mean, r.std), 1) for r in (p, q)]
    torch.testing.assert_close(kl_executed(*objects, low, high), executed)
    arrays = [r.map(lambda x: x.numpy()) for r in (p, q)]
    np.testing.assert_allclose(kl_executed(*arrays, low, high), executed.numpy())


number = st.floats(-5, 5)


@given(number, number, number, number, st.floats(-30, 30), st.floats(0.01, 30))
@settings(deadline=None, max_examples=200, derandomize=True)
def test_clipping_adds_no_kl_and_no_nan(mean_p, log_std_p, mean_q, log_std_q, low, width):
    numbers = [torch.tensor([x], dtype=torch.float64).requires_grad_() for x in (mean_p, log_std_p, mean_q, log_std_q)]
    p, q = DiagGaussian(*numbers[:2]), DiagGaussian(*numbers[2:])
    whole = kl_divergence(p, q).item()
    for ends in ((low, low + width), (-INF, low), (low, INF)):
        executed = kl_executed(p, q, *ends)
        assert 0.0 <= executed.item() <= whole * (1 + 1e-9) + 1e-12
        assert all(g.isfinite().all() for g in torch.autograd.grad(executed, numbers))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_equals_are_0_apart_with_zero_gradients(dtype, scale):
    p = MAKE[DiagGaussian](50, seed=1).map(lambda x: x.to(dtype))
    p, q = (leaves(DiagGaussian(p.mean, p.log_std + math.log(scale))) for _ in range(2))
    executed = kl_executed(p, q, -1.0, 1.0)
    executed.sum().backward()
    assert executed.dtype == dtype
    assert ((executed >= 0.0) & (executed <= 1e-12)).all()
    assert all((x.grad.abs() <= 1e-9 * max(1.0, 1.0 / scale)).all() for x in (*p.parameters, *q.parameters))


def test_gradients_are_those_of_finite_differences():
    p, q = MAKE[DiagGaussian](4, seed=1), MAKE[DiagGaussian](4, seed=2)
    arguments = [x.clone().requires_grad_() for x in (*p.parameters, *q.parameters)]
    low, high = torch.tensor([-1.0, -INF]), torch.tensor([0.5, 1.0])
    assert torch.autograd.gradcheck(
        lambda a, b, c, d: kl_executed(DiagGaussian(a, b), DiagGaussian(c, d), low, high), arguments
    )


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (1.0, -1.0), (math.nan, 1.0)])
def test_a_box_that_is_none_is_refused(low, high):
    with pytest.raises(ValueError, match=r"^low = .*, high = .*; allowed: low < high in every dimension$"):
        kl_executed(normal(0.0, 1.0), normal(1.0, 1.0), low, high)


def test_other_families_are_refused():
    p = MAKE[Categorical]()
    with pytest.raises(NoClosedForm, match=r"^no closed form for the KL of clipped actions between Categorical"):
        kl_executed(p, p, -1.0, 1.0)
