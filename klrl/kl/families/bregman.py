"""phi(x) = e^x - 1 - x: with x = log q - log p, KL(p||q) = sum p phi(x), a sum of terms >= 0."""

from __future__ import annotations

import torch
from torch import Tensor

SERIES = 0.1
"""Bound below which e^x - 1 - x is computed from its series."""


def phi(x: Tensor) -> Tensor:
    """Return e^x - 1 - x >= 0, accurate to float precision for every x (by a series where terms cancel)."""
    small = x.abs() < SERIES
    large = torch.where(small, 1.0, x)
    return torch.where(small, phi_series(torch.where(small, x, 0.0)), torch.expm1(large) - large)


def phi_series(x: Tensor) -> Tensor:
    """x^2/2! + x^3/3! + ... + x^8/8! by Horner's rule; for |x| < 0.1 the rest is below 1e-12 of the value."""
    total = torch.ones_like(x)
    for n in range(8, 2, -1):
        total = 1.0 + x * total / n
    return 0.5 * x.square() * total
