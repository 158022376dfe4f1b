"""Wasserstein distances: by SciPy, by sorting, by a matrix square root, as metrics."""

import itertools
import math

import numpy as np
import pytest
import torch
from families import MAKE, leaves
from scipy import linalg, stats

from klrl.kl import total_variation, wasserstein
from klrl.kl.families.joint import joint
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

batches = pytest.mark.parametrize(("p_batch", "q_batch"), [((), ()), ((4,), (4,)), ((2, 1), (3,))])
POSITIONS = torch.tensor([0.5, -2.0, 3.0, 1.0, 7.0])


def close(x, y, rtol=1e-8, atol=1e-12):
    torch.testing.assert_close(x, y, rtol=rtol, atol=atol)


def states(p, q):
    shape = torch.broadcast_shapes(p.batch_shape, q.batch_shape)
    p, q = (r.map(lambda x, r=r: x.expand(*shape, *x.shape[len(r.batch_shape) :])) for r in (p, q))
    return [(p[i], q[i]) for i in np.ndindex(*shape)], shape


# Categoricals.
@batches
@pytest.mark.parametrize("positions", [None, POSITIONS], ids=["0, 1, 2, ...", "positions"])
def test_w1_on_a_line_is_scipys(p_batch, q_batch, positions):
    p, q = MAKE[Categorical](*p_batch, seed=1), MAKE[Categorical](*q_batch, seed=2)
    x = np.arange(5.0) if positions is None else positions.numpy()
    pairs, shape = states(p, q)
    expected = [stats.wasserstein_distance(x, x, a.probs.numpy(), b.probs.numpy()) for a, b in pairs]
    close(wasserstein(p, q, ground_metric=positions), torch.tensor(expected, dtype=torch.float64).reshape(shape))


@batches
def test_distances_on_a_line_as_a_matrix_give_the_same_as_positions(p_batch, q_batch):
    p, q = MAKE[Categorical](*p_batch, seed=1), MAKE[Categorical](*q_batch, seed=2)
    matrix = (POSITIONS[:, None] - POSITIONS).abs()
    close(wasserstein(p, q, 1, matrix), wasserstein(p, q, 1, POSITIONS))
    assert torch.equal(wasserstein(p, q, 1, matrix.numpy()), wasserstein(p, q, 1, matrix))


def test_the_discrete_metric_gives_the_total_variation():
    p, q = MAKE[Categorical](20, seed=1), MAKE[Categorical](20, seed=2)
    close(wasserstein(p, q, ground_metric=1.0 - torch.eye(5)), total_variation(p, q))


def test_equal_point_masses_of_any_metric_cost_the_cheapest_assignment():
    d = torch.rand(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    d.fill_diagonal_(0.0)
    p, q = (Categorical(torch.tensor(x).log()) for x in ([0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]))
    cheapest = min(0.5 * (d[0, i] + d[1, j]).item() for i, j in itertools.permutations((2, 3)))
    assert wasserstein(p, q, ground_metric=d).item() == pytest.approx(cheapest, rel=1e-6)


# N(0, 1) and N(3, 5^2): sqrt(9 + 16) = 5.
def test_w2_of_normals_by_hand():
    p, q = (DiagGaussian(torch.tensor([m]), torch.tensor([s]).log()) for m, s in ((0.0, 1.0), (3.0, 5.0)))
    assert wasserstein(p, q).item() == wasserstein(p, q, order=2).item() == pytest.approx(5.0)


@batches
@pytest.mark.parametrize("family", [DiagGaussian, FullGaussian])
def test_w2_of_normals_is_the_formula_with_matrix_square_roots(family, p_batch, q_batch):
    p, q = MAKE[family](*p_batch, seed=1), MAKE[family](*q_batch, seed=2)
    pairs, shape = states(p, q)

    def squared(a, b):
        A, B = ((r.scale_tril if family is FullGaussian else torch.diag(r.std)).numpy() for r in (a, b))
        A, B = A @ A.T, B @ B.T
        half = linalg.sqrtm(B)
        cross = linalg.sqrtm(half @ A @ half)
        return ((a.mean - b.mean) ** 2).sum().item() + np.trace(A + B - 2 * np.real(cross))

    expected = torch.tensor([squared(a, b) for a, b in pairs], dtype=torch.float64).sqrt().reshape(shape)
    close(wasserstein(p, q), expected)
    close(wasserstein(p, q), wasserstein(q, p))
    if family is DiagGaussian:
        full = FullGaussian(q.mean, torch.diag_embed(q.std))
        close(wasserstein(p, full), expected)


@pytest.mark.parametrize("family", [Categorical, DiagGaussian, FullGaussian])
def test_it_is_a_metric(family):
    p, q, r = (MAKE[family](100, seed=i) for i in (1, 2, 3))
    assert (wasserstein(p, r) <= wasserstein(p, q) + wasserstein(q, r) + 1e-12).all()
    assert (wasserstein(p, q) > 0.0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", [Categorical, DiagGaussian, FullGaussian])
def test_equals_are_0_apart_with_finite_gradients(family, dtype):
    p, q = (leaves(MAKE[family](20, seed=1).map(lambda x: x.to(dtype))) for _ in range(2))
    for metric in (None, 1.0 - torch.eye(5)) if family is Categorical else (None,):
        value = wasserstein(p, q, ground_metric=metric)
        assert value.dtype == dtype
        assert ((value >= 0.0) & (value <= 1e-12)).all()
        value.sum().backward()
        assert all(x.grad.isfinite().all() for x in (*p.parameters, *q.parameters))


@pytest.mark.parametrize("metric", [None, POSITIONS, (POSITIONS[:, None] - POSITIONS).abs() ** 0.5, "normals"])
def test_gradients_are_those_of_finite_differences(metric):
    family = Categorical if not isinstance(metric, str) else FullGaussian
    p, q = MAKE[family](2, seed=1), MAKE[family](2, seed=2)
    n, ground = len(p.parameters), None if isinstance(metric, str) else metric
    arguments = [x.clone().requires_grad_() for x in (*p.parameters, *q.parameters)]
    assert torch.autograd.gradcheck(
        lambda *x: wasserstein(family(*x[:n]), family(*x[n:]), ground_metric=ground), arguments, atol=1e-5
    )


# Refused.
@pytest.mark.parametrize(
    ("metric", "text"),
    [
        (torch.zeros(4), r"^ground_metric of shape \[4\]; allowed: finite positions \[5\] or distances \[5, 5\]$"),
        (torch.zeros(5, 4), r"^ground_metric of shape \[5, 4\]"),
        (torch.full((5,), math.nan), r"^ground_metric of shape \[5\]; allowed: finite"),
        (torch.full((5, 5), math.inf), r"^ground_metric of shape \[5, 5\]; allowed: finite"),
        (
            -1.0 * (1.0 - torch.eye(5)),
            r"^ground_metric with least element -1 and 0 on the diagonal; allowed: distances",
        ),
        (torch.ones(5, 5), r"^ground_metric with least element 1 and 1 on the diagonal"),
    ],
)
def test_distances_that_are_none_are_refused(metric, text):
    p = MAKE[Categorical]()
    with pytest.raises(ValueError, match=text) as error:
        wasserstein(p, p, ground_metric=metric)
    assert "\n" not in str(error.value)


def test_orders_and_families_without_a_closed_form_are_refused():
    choice, bell, beta, squashed = (MAKE[f]() for f in (Categorical, DiagGaussian, Beta, SquashedGaussian))
    for order, p in ((2, choice), (1, bell), (2, beta), (None, squashed)):
        with pytest.raises(NoClosedForm, match=f"^no closed form for W_{order or 2} between"):
            wasserstein(p, p, order)
    with pytest.raises(ValueError, match=r"^order = 3; allowed: 1, 2 or None$"):
        wasserstein(bell, bell, 3)
    with pytest.raises(ValueError, match=r"^ground_metric with DiagGaussian; allowed: only with Categorical$"):
        wasserstein(bell, bell, ground_metric=POSITIONS)


def test_the_distance_of_several_choices_is_that_of_the_joint_ones_under_the_number_that_differ():
    for family in (MultiCategorical, Bernoulli):
        p, q = MAKE[family](2, seed=1), MAKE[family](2, seed=2)
        outcomes = joint(p), joint(q)
        heads = np.array(list(itertools.product(*map(range, getattr(p, "nvec", (2, 2, 2))))))
        hamming = torch.from_numpy((heads[:, None] != heads[None]).sum(-1).astype(float))
        assert outcomes[0].probs.shape[-1] == len(heads)
        torch.testing.assert_close(
            wasserstein(p, q, 1), wasserstein(*outcomes, ground_metric=hamming), rtol=1e-6, atol=1e-7
        )
