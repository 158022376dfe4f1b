"""Trust regions that change the surrogate objective itself. r is the probability ratio, A the advantage.

Each equals A, with the gradient of r A, at the old policy; they bound no divergence.
"""

from __future__ import annotations

from dataclasses import dataclass

from klrl.policy.arrays import Array, clip, minimum, where
from klrl.policy.distributions import Gradient
from klrl.trust_region.change import Change
from klrl.trust_region.regions import TrustRegion, weighted
from klrl.validation import Positive, validate


@dataclass(frozen=True)
class Clip(TrustRegion):
    """Removes the incentive to move the ratio out of [1 - clip_range, 1 + clip_range].

    Schulman et al. 2017 (PPO), eq. 7: min(r A, clip(r, 1 - eps, 1 + eps) A). It bounds no divergence.
    """

    clip_range: Positive = 0.2

    def __post_init__(self) -> None:
        validate(self)

    def gain(self, change: Change) -> Array:
        """The smaller of the plain and the clipped surrogate, ``[*B]``."""
        plain, clipped = self._surrogates(change)
        return minimum(plain, clipped)

    def gain_gradient(self, change: Change) -> Gradient:
        """That of the plain gain, where it is the smaller one."""
        plain, clipped = self._surrogates(change)
        return weighted(where(clipped < plain, 0.0, plain), change.new.score(change.action))

    def _surrogates(self, change: Change) -> tuple[Array, Array]:
        clipped = clip(change.ratio, 1.0 - self.clip_range, 1.0 + self.clip_range)
        return change.ratio * change.advantage, clipped * change.advantage
