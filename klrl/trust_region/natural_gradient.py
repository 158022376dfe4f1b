"""Natural gradient: Fisher-vector products and conjugate gradient (Schulman et al. 2015, TRPO, appendix C)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

LinearMap = Callable[[Tensor], Tensor]


def flatten(tensors: Iterable[Tensor]) -> Tensor:
    """One vector ``[P]`` of all the elements, a copy."""
    return torch.cat([x.reshape(-1) for x in tensors])


@torch.no_grad()
def assign(parameters: Sequence[nn.Parameter], vector: Tensor) -> None:
    """Copy the elements of ``vector [P]`` into the parameters, bit for bit."""
    for parameter, part in zip(parameters, vector.split([p.numel() for p in parameters]), strict=True):
        parameter.copy_(part.view_as(parameter))


def gradient(objective: Tensor, parameters: Sequence[nn.Parameter], *, create_graph: bool = False) -> Tensor:
    """d objective / d theta as one vector ``[P]``."""
    grads = torch.autograd.grad(
        objective, parameters, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return flatten(grads)


class FisherVectorProduct:
    """v -> (F + damping I) v, with F the Fisher matrix, the Hessian of the mean KL(old||new) at new = old.

    F v = d/dtheta (dKL/dtheta . v): two passes of autograd, F is never built. The first pass is shared by
    all products.
    """

    def __init__(self, kl: Tensor, parameters: Sequence[nn.Parameter], damping: float = 0.0) -> None:
        self.parameters = parameters
        self.damping = damping
        self._kl_gradient = gradient(kl, parameters, create_graph=True)

    def __call__(self, v: Tensor) -> Tensor:
        """Multiply ``v [P]``."""
        grads = torch.autograd.grad(self._kl_gradient @ v, self.parameters, retain_graph=True, materialize_grads=True)
        return flatten(grads) + self.damping * v


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
