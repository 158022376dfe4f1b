"""Fisher and Rao's distance against geodesics known otherwise; the skew divergence against its definition."""

import math

import mpmath as mp
import pytest
import torch
from families import MAKE

from klrl.kl import fisher_rao, jensen_shannon, kl_divergence, skew_divergence
from klrl.policy.distributions import Bernoulli, Beta, Categorical, DiagGaussian, MultiCategorical, SquashedGaussian

FAMILIES = (Categorical, MultiCategorical, Bernoulli, DiagGaussian, SquashedGaussian)


def normal(mean, std):
    return DiagGaussian(*(torch.tensor([x], dtype=torch.float64) for x in (mean, math.log(std))))


def half_plane(m, s, n, t):
    """sqrt 2 times the distance of (m / sqrt 2, s) and (n / sqrt 2, t) in Poincare's half-plane, by its arcosh."""
    with mp.workdps(40):
        m, s, n, t = (mp.mpf(x) for x in (m, s, n, t))
        return float(mp.sqrt(2) * mp.acosh(1 + ((m - n) ** 2 / 2 + (s - t) ** 2) / (2 * s * t)))


@pytest.mark.parametrize(
    "numbers",
    [
        (0.0, 1.0, 0.0, 3.0),
        (0.0, 1.0, 2.0, 1.0),
        (0.5, 0.25, -3.0, 8.0),
        (0.0, 1.0, 1e-6, 1.0 + 1e-6),
        (0, 1, 1e6, 1e-3),
    ],
)
def test_between_normals_it_is_the_distance_in_the_half_plane(numbers):
    m, s, n, t = numbers
    assert fisher_rao(normal(m, s), normal(n, t)).item() == pytest.approx(
        half_plane(m, math.exp(math.log(s)), n, t), rel=1e-9
    )


def test_between_choices_it_is_twice_the_angle_of_the_roots():
    p, q = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]), torch.tensor([[0.125, 0.375, 0.5], [0.0, 0.5, 0.5]])
    found = fisher_rao(*(Categorical(x.double().log()) for x in (p, q)))
    expected = [
        2 * math.acos(sum(math.sqrt(a * b) for a, b in zip(x, y, strict=True))) for x, y in zip(p, q, strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-12)
    assert found[1].item() == pytest.approx(math.pi, rel=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_half_its_square_is_the_kl_of_near_policies_and_it_is_a_metric(family):
    p, q, r = (MAKE[family](5, seed=i).map(torch.Tensor.double) for i in range(3))
    near = p.map(lambda x: x + 1e-4)
    if family is Categorical or family is MultiCategorical:
        near = p.map(lambda x: x + 1e-4 * torch.arange(x.shape[-1]))
    torch.testing.assert_close(0.5 * fisher_rao(p, near).square(), kl_divergence(p, near), rtol=1e-3, atol=0.0)
    torch.testing.assert_close(fisher_rao(p, q), fisher_rao(q, p))
    assert (fisher_rao(p, r) <= fisher_rao(p, q) + fisher_rao(q, r) + 1e-12).all()
    assert (fisher_rao(p, p) == 0.0).all()


def test_its_gradient_is_finite_and_that_of_differences():
    for family in FAMILIES:
        p, q = (MAKE[family](3, seed=i).map(torch.Tensor.double) for i in range(2))
        x = q.parameters[0].clone().requires_grad_()
        (found,) = torch.autograd.grad(fisher_rao(p, q.with_parameters(x, *q.parameters[1:])).sum(), x)
        step = torch.zeros_like(x).flatten()
        step[1] = 1e-6
        ahead, behind = (
            fisher_rao(p, q.with_parameters(x.detach() + t * step.reshape(x.shape), *q.parameters[1:])) for t in (1, -1)
        )
        assert found.flatten()[1].item() == pytest.approx(((ahead - behind).sum() / 2e-6).item(), rel=1e-5, abs=1e-9)
        (at_zero,) = torch.autograd.grad(fisher_rao(q, q.with_parameters(x, *q.parameters[1:])).sum(), x)
        assert at_zero.isfinite().all()


def test_the_skew_divergence_is_its_definition_and_bounded():
    p, q = torch.tensor([0.5, 0.5, 0.0]).double(), torch.tensor([0.0, 0.25, 0.75]).double()
    for share in (1e-3, 0.01, 0.5, 0.99):
        m = (1 - share) * q + share * p
        expected = sum(a.item() * math.log(a / b) for a, b in zip(p, m, strict=True) if a > 0)
        found = skew_divergence(Categorical(p.log()), Categorical(q.log()), share).item()
        assert found == pytest.approx(expected, rel=1e-9)
        assert found <= math.log(1 / share)
    bits = [MAKE[Bernoulli](4, seed=i) for i in range(2)]
    halves = 0.5 * (skew_divergence(*bits, 0.5) + skew_divergence(*bits[::-1], 0.5))
    torch.testing.assert_close(halves, jensen_shannon(*bits), rtol=1e-5, atol=1e-7)
    for share in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"^share = .*; allowed: in \(0, 1\)$"):
            skew_divergence(*bits, share)


def test_other_families_are_refused():
    beta = MAKE[Beta](2)
    for measure, name in ((fisher_rao, "Fisher-Rao"), (skew_divergence, "skew")):
        with pytest.raises(TypeError, match=f"no closed form for the {name}"):
            measure(beta, beta)
