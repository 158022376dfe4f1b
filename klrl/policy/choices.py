"""Values of settings of policies, and the name of a mask: what can be said of a policy without torch."""

from typing import Literal

ActionDistribution = Literal["gaussian", "squashed-gaussian", "beta"]
Activation = Literal["tanh", "relu"]
MaskSource = Literal["auto", "info", "none"]
MASK = "action_mask"
"""Name of a mask among a Dict observation's entries, or in ``info`` (as in Gymnasium's Taxi and PettingZoo)."""
