"""Natural gradient: Fisher-vector products and conjugate gradient (Schulman et al. 2015, TRPO, appendix C)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor

from klrl.kl import fisher_product
from klrl.policy.linearization import Linearization

LinearMap = Callable[[Tensor], Tensor]
Reason = Literal[
    "converged",
    "rounding",
    "max steps",
    "curvature not positive",
    "preconditioner not positive",
    "right-hand side is zero or not finite",
]


class FisherVectorProduct:
    """Linear map v -> (F + damping I) v; F is the Fisher matrix, the Hessian of mean KL(old||new) at new = old.

    F v = E[J' M J v]: J moves the distributions with the parameters, M is the Fisher matrix of one distribution by
    its own fields (the Gauss-Newton form, exact here: Martens 2020, "New Insights and Perspectives on the Natural
    Gradient Method", section 9). F is never built. The policy must stay where it is between products.

    Args:
        linearize: the policy at ``[n, *O]`` observations and its derivative, as an actor's ``linearize``.
        observations: the states to average over, ``[n, *O]``.
        damping: multiple of the identity.
        batch_size: maximum number of states at a time, to bound the memory; the policy is then evaluated anew for
            every product.
    """

    def __init__(
        self,
        linearize: Callable[[Tensor], Linearization[Any]],
        observations: Tensor,
        damping: float = 0.0,
        batch_size: int | None = None,
    ) -> None:
        self.damping = damping
        self._n = len(observations)
        if batch_size is None or batch_size >= self._n:
            whole = linearize(observations)
            self._policies: list[Callable[[], Linearization[Any]]] = [lambda: whole]
        else:
            self._policies = [partial(linearize, x) for x in observations.split(batch_size)]

    def __call__(self, v: Tensor) -> Tensor:
        """Multiply ``v [P]``."""
        product = self.damping * v
        for evaluate in self._policies:
            policy = evaluate()
            u = fisher_product(policy.output, policy.push_forward(v))
            product.add_(policy.pull_back(*u), alpha=1.0 / self._n)
        return product

    def of_states(self, v: Tensor) -> Tensor:
        """Return v'F_n v of every state n, ``[n]``, whose mean is v'F v without damping: half a product."""
        curvatures = []
        for evaluate in self._policies:
            policy = evaluate()
            moved = policy.push_forward(v)
            u = fisher_product(policy.output, moved)
            curvatures.append(sum((x * y).flatten(1).sum(-1) for x, y in zip(moved, u, strict=True)))
        return torch.cat(cast("list[Tensor]", curvatures))


def fisher_diagonal(
    linearize: Callable[[Tensor], Linearization[Any]],
    observations: Tensor,
    actions: Tensor,
    *,
    n_chunks: int = 64,
    batch_size: int | None = None,
) -> Tensor:
    """Estimate the diagonal of F, ``[P]``, without bias, in one pass over actions that the policy itself drew.

    F = 1/N sum_n E[s_n s_n'] with the scores s_n = J_n' d log pi(a_n|x_n). Under the policy a score has mean zero
    whatever happened before its action, so E[s_m s_n'] = 0 for m != n, along a trajectory, too. Hence the sum v of
    the scores of a chunk of n samples, over sqrt(n), has E[v^2] = diag F: one pull-back per chunk, not one per sample.
    The chunks' squares are averaged, weighted by their sizes; the standard error is about sqrt(2 / chunks) of the
    value, 18 % with 64.

    Args:
        linearize: the policy at ``[n, *O]`` observations and its derivative, as an actor's ``linearize``.
        observations: ``[N, *O]``.
        actions: one for each, sampled from the policy that is linearized.
        n_chunks: approximate number of chunks.
        batch_size: maximum number of samples in a chunk, to bound the memory.
    """
    n = len(observations)
    size = min(max(1, n // n_chunks), batch_size or n)
    diagonal: Any = 0.0
    for x, a in zip(observations.split(size), actions.split(size), strict=True):
        policy = linearize(x)
        v = policy.pull_back(*policy.output.score(a))
        diagonal = diagonal + v * v / n
    return cast("Tensor", diagonal)


@dataclass(frozen=True, eq=False)
class ConjugateGradient:
    """Result of conjugate gradient: the solution, its residual, and why the iteration ended."""

    solution: Tensor
    residual: float
    """||b - A x|| / ||b|| of the solution itself; the iteration's own, by which it ends, drifts from it by rounding."""
    curvature: float
    """x'A x."""
    iterations: int
    reason: Reason
    """"rounding" where the iteration ended as converged and the solution's residual is over twice the tolerance."""


def conjugate_gradient(
    product: LinearMap,
    b: Tensor,
    *,
    max_steps: int = 10,
    tolerance: float = 1e-4,
    preconditioner: LinearMap | Tensor | None = None,
) -> ConjugateGradient:
    """Solve A x = b for a positive definite A given as x -> A x (Hestenes and Stiefel 1952), from x = 0.

    Args:
        product: the matrix, as a function of a vector ``[P]``.
        b: right-hand side ``[P]``.
        max_steps: maximum number of steps, of one product each; one more measures the residual of the solution.
        tolerance: the iteration ends once its ||b - A x|| / ||b|| is below it, preconditioned or not.
        preconditioner: a positive definite M near A, as r -> M^-1 r, or as the vector ``[P]`` of a diagonal M. The
            steps are then those for M^-1/2 A M^-1/2 (Golub and Van Loan 2013, algorithm 11.5.1).
    """
    x, r = torch.zeros_like(b), b
    norm = b.norm().item()
    if not 0.0 < norm < float("inf"):
        return ConjugateGradient(x, float("nan"), 0.0, 0, "right-hand side is zero or not finite")

    def ended(iterations: int, reason: Reason) -> ConjugateGradient:
        image = product(x) if iterations else x
        residual = (b - image).norm().item() / norm
        if reason == "converged" and not residual < 2.0 * tolerance:
            reason = "rounding"
        return ConjugateGradient(x, residual, (x @ image).item(), iterations, reason)

    solve = _inverse(preconditioner)
    z = p = solve(b)
    rz = (r @ z).item()
    for step in range(1, max_steps + 1):
        if preconditioner is not None and not rz > 0.0:
            return ended(step - 1, "preconditioner not positive")
        q = product(p)
        curvature = (p @ q).item()
        if not curvature > 0.0:
            return ended(step, "curvature not positive")
        alpha = rz / curvature
        x = x.add(p, alpha=alpha)
        r = r.sub(q, alpha=alpha)
        rr = (r @ r).item()
        if rr**0.5 < tolerance * norm:
            return ended(step, "converged")
        z = solve(r)
        rz, previous = (rr if z is r else (r @ z).item()), rz
        p = z.add(p, alpha=rz / previous)
    return ended(max_steps, "max steps")


def _inverse(preconditioner: LinearMap | Tensor | None) -> LinearMap:
    if preconditioner is None:
        return lambda r: r
    if isinstance(preconditioner, Tensor):
        return lambda r: r / preconditioner
    return preconditioner
