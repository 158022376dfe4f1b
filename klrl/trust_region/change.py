"""One policy change seen on one batch: what every trust region judges."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from klrl.kl import kl_divergence, reverse_kl
from klrl.policy.distributions import Distribution


@dataclass(frozen=True, eq=False)
class Change:
    """From ``old`` to ``new`` at the same ``[*B]`` states; divergences are computed once, on demand."""

    old: Distribution
    new: Distribution
    log_ratio: Tensor
    """log new(a|s) - log old(a|s) of the actions taken, ``[*B]``."""
    advantage: Tensor
    """Advantage of the actions taken, ``[*B]``."""

    @cached_property
    def ratio(self) -> Tensor:
        """Importance ratio new(a|s) / old(a|s), ``[*B]``."""
        return self.log_ratio.exp()

    @cached_property
    def kl(self) -> Tensor:
        """KL(old||new), nats, ``[*B]``."""
        return kl_divergence(self.old, self.new)

    @cached_property
    def kl_reverse(self) -> Tensor:
        """KL(new||old), nats, ``[*B]``."""
        return reverse_kl(self.old, self.new)
