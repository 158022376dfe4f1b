"""Regions with an inside and an outside: a bound on the whole batch, and what to do beyond it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from klrl.policy.arrays import average
from klrl.trust_region.region import DEFAULT_TARGET_KL, OnExit, TrustRegion
from klrl.validation import Positive, validate

if TYPE_CHECKING:
    from klrl.trust_region.change import Change

__all__ = ["KLConstraint", "RatioDeviation", "ReferenceConstraint", "ReferenceForwardConstraint"]


@dataclass(frozen=True)
class KLConstraint(TrustRegion):
    """Mean KL(old||new) <= target_kl: Schulman et al. 2015 (TRPO), eq. 14.

    ``on_exit="backtrack"`` is a constraint: an update that left the region is pulled back inside.
    ``on_exit="stop"`` is early stopping: the update ends, and the step that left the region is kept.
    """

    target_kl: Positive = DEFAULT_TARGET_KL
    on_exit: OnExit = "backtrack"

    def __post_init__(self) -> None:
        validate(self)

    def violation(self, change: Change) -> float:
        """Return mean KL - target_kl, nats."""
        return average(change.kl) - self.target_kl

    def step_length(self, curvature: float) -> float:
        """Return sqrt(2 target_kl / x'Fx): TRPO, appendix C."""
        return math.sqrt(2.0 * self.target_kl / curvature)


@dataclass(frozen=True)
class RatioDeviation(TrustRegion):
    """Mean |r - 1| <= ratio_deviation: ends the epochs once the ratios are too far from 1.

    Sun et al. 2022 ("You May Not Need Ratio Clipping in PPO"), ESPO: an unclipped surrogate, and this stopping rule.
    In expectation over old(a|s) that mean is twice the total variation of the policies, so by Pinsker's inequality
    mean KL(old||new) >= ratio_deviation^2 / 2 outside; no KL is bounded from above.
    """

    ratio_deviation: Positive = 0.25
    on_exit = cast("OnExit | None", "stop")

    def __post_init__(self) -> None:
        validate(self)

    def violation(self, change: Change) -> float:
        """Return mean |r - 1| - ratio_deviation."""
        return average(abs(change.ratio - 1.0)) - self.ratio_deviation


@dataclass(frozen=True)
class ReferenceConstraint(TrustRegion):
    """Mean KL(new||reference) <= reference_kl; a policy that is already beyond may not move farther away.

    The bound is on where the policy is, not on how far it moves. It holds on the states of every batch; on new states
    the policy may be beyond it already, and then an update may only bring it nearer or leave it where it is.
    """

    reference_kl: Positive = 0.1
    on_exit = cast("OnExit | None", "backtrack")
    reads_reference = True

    def __post_init__(self) -> None:
        validate(self)

    def violation(self, change: Change) -> float:
        """Return mean KL(new||reference) - max(reference_kl, mean KL(old||reference)), nats."""
        return average(change.kl_reference) - max(self.reference_kl, average(change.kl_reference_before))


@dataclass(frozen=True)
class ReferenceForwardConstraint(TrustRegion):
    """Mean KL(reference||new) <= reference_forward_kl; a policy that is already beyond may not move farther away.

    :class:`ReferenceConstraint` in the direction that forgetting follows (Shenfeld et al. 2025, "RL's Razor").
    """

    reference_forward_kl: Positive = 0.1
    on_exit = cast("OnExit | None", "backtrack")
    reads_reference = True

    def __post_init__(self) -> None:
        validate(self)

    def violation(self, change: Change) -> float:
        """Return mean KL(reference||new) - max(reference_forward_kl, mean KL(reference||old)), nats."""
        allowed = max(self.reference_forward_kl, average(change.kl_reference_forward_before))
        return average(change.kl_reference_forward) - allowed
