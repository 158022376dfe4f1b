"""Several independent choices as a single one over joint outcomes, for divergences that do not add up."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from klrl.policy.distributions import Categorical, Factored, MultiCategorical

MAX_OUTCOMES = 4096
"""Most joint outcomes that are enumerated."""


def outcomes(p: Factored) -> int:
    """Return the number of joint outcomes."""
    return math.prod(p.nvec) if isinstance(p, MultiCategorical) else 2 ** p.parameters[0].shape[-1]


def joint(p: Factored) -> Categorical:
    """Return a single choice among all joint outcomes, the last head's varying fastest."""
    heads = p.heads.logits
    sizes = p.nvec if isinstance(p, MultiCategorical) else (2,) * heads.shape[-2]
    logits: Tensor = heads.new_zeros((*heads.shape[:-2], 1))
    for i, k in enumerate(sizes):
        logits = (logits.unsqueeze(-1) + torch.log_softmax(heads[..., i, :k], -1).unsqueeze(-2)).flatten(-2)
    return Categorical(logits)
