"""The policy before the last update, which the next rollout compares with the one that it led to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from klrl.policy.normalizer import Normalizer


@dataclass(frozen=True, eq=False)
class Predecessor:
    """A policy before an update and the parameters after it, from the update until the next rollout is in."""

    parameters: Tensor
    """Parameters of the policy before the update, ``[P]``."""
    normalizer: Normalizer
    """Statistics that it normalised observations with."""
    successor: Tensor
    """Parameters that the update led to, a change of statistics folded in, ``[P]``."""

    def leads_to(self, parameters: Tensor) -> bool:
        """Tell whether the policy is still what the update made it: nothing else has moved or replaced it since."""
        return torch.equal(self.successor, parameters)
