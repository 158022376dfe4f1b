"""Fisher-vector products against dense matrices, conjugate gradient against dense solves."""

import math

import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import distributions as td
from torch.func import functional_call

from klrl.kl import kl_divergence
from klrl.policy.actors import make_actor
from klrl.policy.linearization import flatten, pack
from klrl.policy.observations import Encoding
from klrl.trust_region import FisherVectorProduct, conjugate_gradient, fisher_diagonal

STATES = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SPACES = [Discrete(4), Box(-1.0, 1.0, (2,))]
policies = pytest.mark.parametrize("space", SPACES, ids=["categorical", "gaussian"])


def randn(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_policy(space):
    """A small policy in float64, moved away from its nearly uniform start."""
    generator = torch.Generator().manual_seed(0)
    encoding = Encoding(Box(-1.0, 1.0, (3,)), space)
    actor = make_actor(encoding, space, (4,), log_std_init=-0.5, activation="tanh", generator=generator).double()
    theta = pack(actor).detach()
    theta += 0.3 * randn(len(theta))
    return actor, theta


def from_vector(actor, theta):
    """The policy's output tensors as a pure function of one flat parameter vector."""
    names, shapes = zip(*((n, p.shape) for n, p in actor.named_parameters()), strict=True)
    parts = theta.split([s.numel() for s in shapes])
    values = {n: x.view(s) for n, x, s in zip(names, parts, shapes, strict=True)}
    return functional_call(actor, values, (STATES,)).parameters


def to_torch(parameters):
    if len(parameters) == 1:
        return td.Categorical(logits=parameters[0])
    return td.Independent(td.Normal(parameters[0], parameters[1].exp()), 1)


def dense_hessian(actor):
    """The Hessian of torch's mean KL(old||theta) at theta = old."""
    theta = flatten(actor.parameters()).detach()
    old = to_torch([x.detach() for x in from_vector(actor, theta)])
    mean_kl = lambda v: td.kl_divergence(old, to_torch(from_vector(actor, v))).mean()  # noqa: E731
    return torch.autograd.functional.hessian(mean_kl, theta)


def score_covariance(actor):
    """E[grad log pi grad log pi'] over states and actions: all actions, or the Gaussian's known integrals."""
    theta = flatten(actor.parameters()).detach()
    if len(from_vector(actor, theta)) == 1:
        log_probs = lambda v: to_torch(from_vector(actor, v)).logits  # noqa: E731
        scores = torch.autograd.functional.jacobian(log_probs, theta)  # [states, actions, P]
        return torch.einsum("sa,sap,saq->pq", log_probs(theta).exp(), scores, scores) / len(STATES)
    # log pi has derivatives z / sigma by the mean and z^2 - 1 by log sigma: variances 1 / sigma^2 and 2.
    J_mean, J_log_std = torch.autograd.functional.jacobian(lambda v: from_vector(actor, v), theta)
    precision = from_vector(actor, theta)[1].mul(-2).exp()
    by_mean = torch.einsum("sd,sdp,sdq->pq", precision, J_mean, J_mean)
    return (by_mean + 2.0 * torch.einsum("sdp,sdq->pq", J_log_std, J_log_std)) / len(STATES)


def fisher(actor, damping=0.0, batch_size=None):
    return FisherVectorProduct(actor.linearize, STATES, damping, batch_size)


def dense(product, n):
    return torch.stack([product(e) for e in torch.eye(n, dtype=torch.float64)], -1)


@policies
@pytest.mark.parametrize("oracle", [dense_hessian, score_covariance])
def test_fisher_vector_products_are_those_of_the_dense_matrix(space, oracle):
    actor, _ = make_policy(space)
    F = oracle(actor)
    torch.testing.assert_close(dense(fisher(actor), len(F)), F, rtol=1e-9, atol=1e-12)


@policies
def test_the_fisher_matrix_is_symmetric_and_positive_semidefinite(space):
    actor, theta = make_policy(space)
    F = dense(fisher(actor), len(theta))
    torch.testing.assert_close(F, F.T, rtol=1e-9, atol=1e-13)
    assert torch.linalg.eigvalsh(F).min() > -1e-12


@policies
def test_damping_adds_a_multiple_of_the_identity(space):
    actor, theta = make_policy(space)
    v = randn(len(theta))
    torch.testing.assert_close(fisher(actor, 0.3)(v), fisher(actor)(v) + 0.3 * v)


@policies
@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_products_over_parts_of_the_states_are_those_over_all(space, batch_size):
    actor, theta = make_policy(space)
    v = randn(len(theta))
    torch.testing.assert_close(fisher(actor, 0.1, batch_size)(v), fisher(actor, 0.1)(v), rtol=1e-12, atol=1e-14)


@policies
def test_half_the_fisher_form_predicts_the_kl_of_a_small_step(space):
    actor, theta = make_policy(space)
    old, start, v = actor(STATES).detach(), theta.clone(), randn(len(theta))
    predicted = 0.5 * v @ fisher(actor)(v)
    for step in (1e-3, 1e-4):
        theta.copy_(start + step * v)
        kl = kl_divergence(old, actor(STATES)).mean()
        assert (kl / step**2).item() == pytest.approx(predicted.item(), rel=30 * step)


def test_products_leave_parameters_and_their_gradients_alone():
    actor, theta = make_policy(SPACES[0])
    before, product = theta.clone(), fisher(actor)
    v = randn(len(before))
    assert torch.equal(product(v), product(v))
    assert torch.equal(theta, before)
    assert all(p.grad is None for p in actor.parameters())


def test_float32_products_agree_with_float64():
    actor, theta = make_policy(SPACES[1])
    v = randn(len(theta))
    exact = fisher(actor)(v)
    rounded = FisherVectorProduct(actor.float().linearize, STATES.float())(v.float())
    assert (rounded - exact).norm() < 1e-5 * exact.norm()


# Conjugate gradient.
def positive_definite(eigenvalues):
    n = len(eigenvalues)
    Q, _ = torch.linalg.qr(randn(n, n))
    return Q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ Q.T


def relative_residual(A, b, x):
    return ((b - A @ x).norm() / b.norm()).item()


@pytest.mark.parametrize("n", [1, 2, 20, 60])
def test_conjugate_gradient_solves_the_system(n):
    A, b = positive_definite([1.0 + 9.0 * i / n for i in range(n)]), randn(n, seed=2)
    cg = conjugate_gradient(A.mv, b, max_steps=100, tolerance=1e-12)
    assert cg.reason == "converged"
    assert cg.residual < 1e-12
    torch.testing.assert_close(cg.solution, torch.linalg.solve(A, b), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("distinct", [[2.0], [1.0, 5.0], [0.1, 1.0, 30.0]])
def test_conjugate_gradient_needs_one_step_per_distinct_eigenvalue(distinct):
    A, b = positive_definite(distinct * 6), randn(6 * len(distinct), seed=2)
    cg = conjugate_gradient(A.mv, b, max_steps=50, tolerance=1e-9)
    assert (cg.reason, cg.iterations) == ("converged", len(distinct))


@pytest.mark.parametrize("max_steps", [1, 3, 10])
def test_the_residual_is_the_true_one_when_steps_run_out(max_steps):
    A, b = positive_definite([10.0 ** (i / 5) for i in range(30)]), randn(30, seed=2)
    cg = conjugate_gradient(A.mv, b, max_steps=max_steps, tolerance=1e-12)
    assert (cg.reason, cg.iterations) == ("max steps", max_steps)
    assert cg.residual == pytest.approx(relative_residual(A, b, cg.solution), rel=1e-6)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-6])
def test_it_ends_at_the_first_step_below_the_tolerance(tolerance):
    A, b = positive_definite([1.0 + i for i in range(30)]), randn(30, seed=2)
    cg = conjugate_gradient(A.mv, b, max_steps=100, tolerance=tolerance)
    assert cg.residual < tolerance
    assert relative_residual(A, b, cg.solution) == pytest.approx(cg.residual, rel=1e-4)
    shorter = conjugate_gradient(A.mv, b, max_steps=cg.iterations - 1, tolerance=tolerance)
    assert shorter.residual >= tolerance


@pytest.mark.parametrize(
    ("diagonal", "b", "solution"),
    [
        ([-1.0, -1.0], [1.0, 2.0], [0.0, 0.0]),
        ([0.0, 0.0], [1.0, 2.0], [0.0, 0.0]),
        ([math.nan, 1.0], [1.0, 2.0], [0.0, 0.0]),
        # One good step, alpha = b'b / b'Ab = 5/3; then the next direction has negative curvature.
        ([1.0, -1.0], [2.0, 1.0], [10 / 3, 5 / 3]),
    ],
)
def test_it_stops_where_the_curvature_is_not_positive_and_keeps_what_it_had(diagonal, b, solution):
    A, b = torch.tensor(diagonal, dtype=torch.float64).diag(), torch.tensor(b, dtype=torch.float64)
    cg = conjugate_gradient(A.mv, b)
    assert cg.reason == "curvature not positive"
    torch.testing.assert_close(cg.solution, torch.tensor(solution, dtype=torch.float64))
    if not A.isnan().any():
        assert cg.residual == pytest.approx(relative_residual(A, b, cg.solution))


@pytest.mark.parametrize("b", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_a_zero_or_broken_right_hand_side_is_reported_without_a_step(b):
    cg = conjugate_gradient(lambda v: v, torch.tensor(b))
    assert (cg.reason, cg.iterations) == ("right-hand side is zero or not finite", 0)
    assert cg.solution.tolist() == [0.0, 0.0]
    assert math.isnan(cg.residual)


@policies
def test_the_natural_gradient_of_a_policy_solves_the_dense_damped_system(space):
    actor, theta = make_policy(space)
    g = randn(len(theta), seed=4)
    cg = conjugate_gradient(fisher(actor, damping=0.1), g, max_steps=200, tolerance=1e-12)
    damped = score_covariance(actor) + 0.1 * torch.eye(len(g), dtype=torch.float64)
    torch.testing.assert_close(cg.solution, torch.linalg.solve(damped, g), rtol=1e-8, atol=1e-10)


# The diagonal of the Fisher matrix, and preconditioning.
def drawn_from(actor, n, seed=5):
    """Many visits of the few states, with an action of the policy for each."""
    x = STATES.repeat(n, 1)
    return x, actor(x).detach().sample(torch.Generator().manual_seed(seed))


@policies
@pytest.mark.parametrize("batch_size", [None, 5])
def test_the_estimated_diagonal_is_that_of_the_dense_fisher_matrix(space, batch_size):
    actor, _ = make_policy(space)
    exact, n_repeats = score_covariance(actor).diagonal(), 200
    found = torch.stack([
        fisher_diagonal(actor.linearize, *drawn_from(actor, 40, seed), n_chunks=28, batch_size=batch_size)
        for seed in range(n_repeats)
    ])  # fmt: skip
    stderr = found.std(0) / n_repeats**0.5
    z = (found.mean(0) - exact) / stderr.clamp_min(1e-300)
    assert z[stderr > 0.0].square().mean() < 2.0  # not 3 sigma for each of so many correlated elements
    assert z.abs().max() < 5.0
    spread = found.std(0) / exact
    if batch_size is None:
        assert spread[exact > 0.0].median().item() == pytest.approx((2 / 28) ** 0.5, rel=0.2)  # the docstring's


def test_chunks_of_one_sample_give_the_mean_square_of_the_scores():
    actor, theta = make_policy(SPACES[0])
    x, a = drawn_from(actor, 3)
    log_prob = lambda v: to_torch(tuple(y.repeat(3, 1) for y in from_vector(actor, v))).log_prob(a)  # noqa: E731
    scores = torch.autograd.functional.jacobian(log_prob, theta)
    torch.testing.assert_close(fisher_diagonal(actor.linearize, x, a, n_chunks=10**6), scores.square().mean(0))


def badly_scaled(n, spread):
    """D A D for a well conditioned A and a diagonal D over so many orders of magnitude."""
    d = 10.0 ** torch.linspace(-spread / 2, spread / 2, n, dtype=torch.float64)
    return d[:, None] * positive_definite([1.0 + i / n for i in range(n)]) * d


@pytest.mark.parametrize("n", [5, 40])
@pytest.mark.parametrize("spread", [0.0, 2.0])
@pytest.mark.parametrize("as_map", [False, True], ids=["vector", "map"])
def test_preconditioned_it_finds_the_same_solution_in_fewer_steps_where_the_diagonal_is_badly_scaled(n, spread, as_map):
    A, b = badly_scaled(n, spread), randn(n, seed=2)
    M = A.diagonal()
    with_diagonal = M.reciprocal().mul if as_map else M
    plain = conjugate_gradient(A.mv, b, max_steps=500, tolerance=1e-9)
    cg = conjugate_gradient(A.mv, b, max_steps=500, tolerance=1e-9, preconditioner=with_diagonal)
    assert cg.reason == "converged"
    assert relative_residual(A, b, cg.solution) == pytest.approx(cg.residual, rel=1e-3, abs=1e-12)
    torch.testing.assert_close(cg.solution, torch.linalg.solve(A, b), rtol=1e-6, atol=1e-9)
    if spread > 0.0 and n > 5:
        assert cg.iterations < plain.iterations / 2


def test_the_inverse_itself_needs_one_step_and_the_identity_changes_nothing():
    A, b = positive_definite([10.0 ** (i / 5) for i in range(20)]), randn(20, seed=2)
    assert conjugate_gradient(A.mv, b, preconditioner=torch.linalg.inv(A).mv).iterations == 1
    plain = conjugate_gradient(A.mv, b, max_steps=7)
    same = conjugate_gradient(A.mv, b, max_steps=7, preconditioner=torch.ones_like(b))
    assert torch.equal(same.solution, plain.solution)
    assert (same.residual, same.iterations, same.reason) == (plain.residual, 7, "max steps")


@pytest.mark.parametrize("element", [-0.5, math.nan])
def test_a_preconditioner_that_is_not_positive_is_reported(element):
    cg = conjugate_gradient(lambda v: v, torch.ones(2), preconditioner=torch.tensor([1.0, element]))
    assert (cg.reason, cg.iterations, cg.residual) == ("preconditioner not positive", 0, 1.0)
    assert cg.solution.tolist() == [0.0, 0.0]


def test_the_residual_is_that_of_the_solution_and_not_the_one_that_rounding_has_left_behind():
    A = positive_definite([10.0 ** (-i / 12) for i in range(49)]).float()
    b = randn(49, seed=2).float()
    reasons = set()
    for tolerance in (1e-2, 1e-4, 1e-6, 1e-8):
        cg = conjugate_gradient(A.mv, b, max_steps=3000, tolerance=tolerance)
        true = relative_residual(A.double(), b.double(), cg.solution.double())
        assert cg.residual == pytest.approx(true, rel=0.1)
        assert (cg.reason == "converged") == (cg.residual < 2.0 * tolerance)
        assert cg.curvature == pytest.approx((cg.solution @ A @ cg.solution).item(), rel=1e-4)
        reasons.add(cg.reason)
    assert reasons == {"converged", "rounding"}
