"""Square roots that distances need: at 0 their gradient is 0 instead of infinite."""

from __future__ import annotations

import torch
from torch import Tensor


def root(x: Tensor) -> Tensor:
    """sqrt(x), 0 with gradient 0 where x <= 0 (a distance has no derivative at 0; 0 is one of its subgradients)."""
    positive = x > 0.0
    return torch.where(positive | x.isnan(), torch.where(positive | x.isnan(), x, 1.0).sqrt(), 0.0)


def length(x: Tensor) -> Tensor:
    """Euclidean norm over the last dimension."""
    return root(x.square().sum(-1))
