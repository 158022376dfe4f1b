"""Minimise a smooth function of a few numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def least(f: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Return where f is least near a start ``[n]``, by BFGS with f's derivatives (torch.optim takes 2 s to import)."""
    from scipy.optimize import minimize

    def value_and_gradient(x: list[float]) -> tuple[float, list[float]]:
        at = torch.tensor(x, dtype=torch.float64).requires_grad_()
        value = f(at)
        (gradient,) = torch.autograd.grad(value, at)
        return value.item(), gradient.tolist()

    found = minimize(
        lambda x: value_and_gradient(x.tolist()), start.tolist(), jac=True, method="BFGS", options={"gtol": 1e-11}
    )
    return torch.from_numpy(found.x)
