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

    The actor's rate is then the training's first one times ``scale``: a schedule, which would lower the KL while the
    scale rose against it, moves the critic's alone; the next training begins with the rate that this one ended with.

    The rule of rsl_rl (Rudin et al. 2022, "Learning to Walk in Minutes"), which looks at every minibatch and changes
    the critic's rate, too; here it looks once, at the whole update, and leaves the critic alone. Its target is an aim,
    not a bound. The scale stays in [minimum, maximum], rsl_rl's bounds (1e-5 and 1e-2) over its first rate (1e-3).
    """

    target_kl: Positive = DEFAULT_TARGET_KL
    scale: Positive = 1.0
    minimum: Positive = 0.01
    maximum: Positive = 10.0
    rate_share: Positive | None = None
    """Scheduled rate over the training's first one; None before the first update."""

    def __post_init__(self) -> None:
        validate(self)
        if not self.minimum <= self.scale <= self.maximum:
            raise ValueError(f"scale = {self.scale}; allowed: a number in [{self.minimum:g}, {self.maximum:g}]")

    @property
    def lr_scale(self) -> float:  # type: ignore[override]
        """The scale in force, over the share that the schedule leaves."""
        return self.scale / (self.rate_share or 1.0)

    def at_rate(self, share: float) -> Self:
        """Cancel the schedule; in its first update a region begins with ``scale`` times the scheduled rate."""
        scale = self.scale * share if self.rate_share is None else self.scale
        return replace(self, scale=min(max(scale, self.minimum), self.maximum), rate_share=share)

    def adapt(self, change: Change) -> Self:
        """Adapt the scale to the KL of the whole update; a KL of 0 (no step) says nothing about the rate."""
        kl = average(change.kl)
        if kl > 2.0 * self.target_kl:
            return replace(self, scale=max(self.scale / 1.5, self.minimum))
        if 0.0 < kl < self.target_kl / 2.0:
            return replace(self, scale=min(self.scale * 1.5, self.maximum))
        return self
