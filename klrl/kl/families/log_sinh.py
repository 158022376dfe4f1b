"""log(sinh(h) / h) of half the log-odds h, the log-normaliser of a continuous Bernoulli, and its derivatives."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALL = 0.05
"""Bound below which these functions are computed from their series (rest below 1e-11 of the value)."""


def log_sinh(h: Tensor) -> Tensor:
    """log(sinh(h) / h)."""
    small = h.abs() < _SMALL
    x, y = torch.where(small, h, 0.0).square(), torch.where(small, 1.0, h).abs()
    series = x * (1 / 6 - x * (1 / 180 - x * (1 / 2835 - x / 37800)))
    return torch.where(small, series, y - (2.0 * y).log() + torch.log1p(-(-2.0 * y).exp()))


def slope_of_log_sinh(h: Tensor) -> Tensor:
    """coth(h) - 1 / h."""
    small = h.abs() < _SMALL
    x, y = torch.where(small, h, 0.0), torch.where(small, 1.0, h)
    square = x.square()
    series = x * (1 / 3 - square * (1 / 45 - square * (2 / 945 - square / 4725)))
    return torch.where(small, series, 1.0 / y.tanh() - 1.0 / y)


def curvature_of_log_sinh(h: Tensor) -> Tensor:
    """1 / h^2 - 1 / sinh(h)^2."""
    small = h.abs() < _SMALL
    x, y = torch.where(small, h, 0.0).square(), torch.where(small, 1.0, h).clamp(-300.0, 300.0)
    series = 1 / 3 - x * (1 / 15 - x * (2 / 189 - x / 675))
    return torch.where(small, series, y.square().reciprocal() - y.sinh().square().reciprocal())
