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
    the critic's rate, too. Here it looks after every epoch, at the whole batch, and leaves the critic alone. The KL of
    a part of an update counts as what the whole one would reach: a policy that moves on at the same pace has gone a
    share of the way, and KL is the square of that. At one rate updates differ in their KL by orders of magnitude, as
    the gradients of their minibatches agree more or less; a rate that moved between updates alone would only follow
    the update before. The target is an aim, not a bound. The scale stays in [minimum, maximum], rsl_rl's bounds (1e-5
    and 1e-2) over its first rate (1e-3).
    """

    target_kl: Positive = DEFAULT_TARGET_KL
    scale: Positive = 1.0
    minimum: Positive = 0.01
    maximum: Positive = 10.0
    rate_share: Positive | None = None
    """Scheduled rate over the training's first one; None before the first update."""
    pace: Positive = 1.0
    """Factor of the scale in the rest of an update."""

    def __post_init__(self) -> None:
        validate(self)
        if not self.minimum <= self.scale <= self.maximum:
            raise ValueError(f"scale = {self.scale}; allowed: a number in [{self.minimum:g}, {self.maximum:g}]")

    @property
    def lr_scale(self) -> float:  # type: ignore[override]
        """The scale in force, over the share that the schedule leaves."""
        return self.scale * self.pace / (self.rate_share or 1.0)

    def at_rate(self, share: float) -> Self:
        """Cancel the schedule; in its first update a region begins with ``scale`` times the scheduled rate."""
        scale = self.scale * share if self.rate_share is None else self.scale
        return replace(self, scale=self._bounded(scale), rate_share=share)

    def adapt_within(self, change: Change, share: float) -> Self:
        """Adapt the rate of the rest of the update to KL / share^2; a KL of 0 (no step) says nothing about it."""
        kl = average(change.kl) / share**2
        factor = 1.0 / _STEP if kl > 2.0 * self.target_kl else _STEP if 0.0 < kl < self.target_kl / 2.0 else 1.0
        return replace(self, pace=self._bounded(factor * self.pace * self.scale) / self.scale)

    def adapt(self, change: Change) -> Self:
        """Adapt the scale to the KL of the whole update, and to how its rate had to change on the way."""
        pace = self.adapt_within(change, 1.0).pace
        return replace(self, scale=self._bounded(self.scale * min(max(pace, 1.0 / _STEP), _STEP)), pace=1.0)

    def _bounded(self, scale: float) -> float:
        return min(max(scale, self.minimum), self.maximum)


_STEP = 1.5
"""Factor by which the rate changes after an epoch, and the scale after an update."""
