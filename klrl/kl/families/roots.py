"""Square roots for distances: their gradient at 0 is 0 instead of infinite."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDING = 1e-25
"""Squares of distances below it count as 0 with rounding errors."""


def root(x: Tensor) -> Tensor:
    """sqrt(x); 0 with gradient 0 where x is 0 up to rounding (no derivative there, but 0 is a subgradient)."""
    positive = x > ROUNDING
    return torch.where(positive | x.isnan(), torch.where(positive | x.isnan(), x, 1.0).sqrt(), 0.0)


def length(x: Tensor) -> Tensor:
    """Return the Euclidean norm over the last dimension."""
    return root(x.square().sum(-1))
