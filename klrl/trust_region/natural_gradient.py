"""Natural gradient: Fisher-vector products and conjugate gradient (Schulman et al. 2015, TRPO, appendix C)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from klrl.kl import fisher_product
from klrl.policy.linearization import Linearization

LinearMap = Callable[[Tensor], Tensor]


class FisherVectorProduct:
    """v -> (F + damping I) v, with F the policy's Fisher matrix, the Hessian of the mean KL(old||new) at new = old.

    F v = E[J' M J v]: J moves the distributions with the parameters, M is the Fisher matrix of one distribution by
    its own fields (the Gauss-Newton form, exact here: Martens 2020, "New Insights and Perspectives on the Natural
    Gradient Method", section 9). F is never built. The policy must stay where it is between products.

    Args:
        linearize: the policy at ``[n, *O]`` observations and its derivative, as an actor's ``linearize``.
        observations: the states of the mean, ``[n, *O]``.
        damping: multiple of the identity.
        batch_size: most states at a time; bounds the memory, and the policy is evaluated anew for every product.
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
            product += policy.pull_back(*(x / self._n for x in u))
        return product


@dataclass(frozen=True, eq=False)
class ConjugateGradient:
    """What conjugate gradient found: x, how good it is, and why it ended."""

    solution: Tensor
    residual: float
    """||b - A x|| / ||b||."""
    iterations: int
    reason: Literal["converged", "max steps", "curvature not positive", "right-hand side is zero or not finite"]


def conjugate_gradient(
    product: LinearMap, b: Tensor, *, max_steps: int = 10, tolerance: float = 1e-4
) -> ConjugateGradient:
    """Solve A x = b for a positive definite A given as x -> A x (Hestenes and Stiefel 1952), from x = 0.

    Args:
        product: the matrix, as a function of a vector ``[P]``.
        b: right-hand side ``[P]``.
        max_steps: most products to spend.
        tolerance: ends once ||b - A x|| / ||b|| is below it.
    """
    x = torch.zeros_like(b)
    norm = b.norm().item()
    if not 0.0 < norm < float("inf"):
        return ConjugateGradient(x, float("nan"), 0, "right-hand side is zero or not finite")
    r, p = b.clone(), b.clone()
    rr = r @ r
    for step in range(1, max_steps + 1):
        z = product(p)
        curvature = p @ z
        if not curvature > 0.0:
            return ConjugateGradient(x, rr.sqrt().item() / norm, step, "curvature not positive")
        alpha = rr / curvature
        x = x + alpha * p
        r = r - alpha * z
        rr, previous = r @ r, rr
        if rr.sqrt().item() / norm < tolerance:
            return ConjugateGradient(x, rr.sqrt().item() / norm, step, "converged")
        p = r + (rr / previous) * p
    return ConjugateGradient(x, rr.sqrt().item() / norm, max_steps, "max steps")
