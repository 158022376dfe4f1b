"""Regions that scale the actor's learning rate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from klrl.policy.arrays import average
from klrl.trust_region.region import DEFAULT_TARGET_KL, TrustRegion
from klrl.validation import Positive, validate

if TYPE_CHECKING:
    from klrl.trust_region.change import Change

__all__ = ["AdaptiveLearningRate"]


@dataclass(frozen=True, kw_only=True)
class AdaptiveLearningRate(TrustRegion):
    """Divides the actor's learning rate by 1.5 if mean KL(old||new) > 2 target_kl, multiplies it if < target_kl / 2.

    The rule of rsl_rl (Rudin et al. 2022, "Learning to Walk in Minutes"), which looks at every minibatch and changes
    the critic's rate, too; here it looks once, at the whole update, and leaves the critic alone. Its target is an aim,
    not a bound. The scale stays in [minimum, maximum], rsl_rl's bounds (1e-5 and 1e-2) over its first rate (1e-3).
    """

    target_kl: Positive = DEFAULT_TARGET_KL
    scale: Positive = 1.0
    minimum: Positive = 0.01
    maximum: Positive = 10.0

    def __post_init__(self) -> None:
        validate(self)
        if not self.minimum <= self.scale <= self.maximum:
            raise ValueError(f"scale = {self.scale}; allowed: a number in [{self.minimum:g}, {self.maximum:g}]")

    @property
    def lr_scale(self) -> float:  # type: ignore[override]
        """The scale in force."""
        return self.scale

    def adapt(self, change: Change) -> Self:
        """Adapt the scale to the KL of the whole update; a KL of 0 (no step) says nothing about the rate."""
        kl = average(change.kl)
        if kl > 2.0 * self.target_kl:
            return replace(self, scale=max(self.scale / 1.5, self.minimum))
        if 0.0 < kl < self.target_kl / 2.0:
            return replace(self, scale=min(self.scale * 1.5, self.maximum))
        return self
