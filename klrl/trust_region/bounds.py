"""Regions with an inside and an outside: a bound on the whole batch, and what to do beyond it."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Self, cast

from klrl.policy.arrays import Array, average, quantile, tail_average
from klrl.trust_region.region import DEFAULT_TARGET_KL, OnExit, TrustRegion
from klrl.validation import Bounds, Positive, validate

if TYPE_CHECKING:
    from klrl.trust_region.change import Change

__all__ = [
    "CVaRConstraint", "KLConstraint", "MaxConstraint", "NextStateConstraint", "QuantileConstraint", "RatioDeviation",
    "ReferenceConstraint", "ReferenceForwardConstraint", "TailConstraint",
]  # fmt: skip

Level = Annotated[float, Bounds(0.0, 0.9999, open_below=True)]


@dataclass(frozen=True)
class KLConstraint(TrustRegion):
    """Mean KL(old||new) <= target_kl: Schulman et al. 2015 (TRPO), eq. 14.

    ``on_exit="backtrack"`` is a constraint: a policy that left the region goes back inside and continues from there.
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


@dataclass(frozen=True, kw_only=True)
class NextStateConstraint(TrustRegion):
    """Mean KL(old||new) <= next_kl on the states that the new policy visits, in all but a share of the updates.

    Those states are known only once the policy has moved, so the bound in force, on the batch's states, is a part of
    it: scale next_kl. After each rollout the scale rises by a little where the next states' KL was within next_kl, and
    falls where it was not, in logs at least 1 / share - 1 times as far. Since both add up to where the scale is,

        (updates over) / n <= share + (1 - share) log(first scale / scale) / (rate n)

    after n updates, whatever states come, as long as the scale is above its minimum: the argument of Gibbs and Candes
    2021 ("Adaptive Conformal Inference Under Distribution Shift"), proposition 4.1.
    """

    next_kl: Positive = DEFAULT_TARGET_KL
    share: Annotated[float, Bounds(0.0, 0.5, open_below=True)] = 0.03
    """Share of updates that are over the bound in the long run; in the first hundred there are a few more."""
    rate: Positive = 0.5
    """Fall of log scale after an update that is over by nothing; what it is over by is added."""
    scale: Positive = 0.5
    """Bound in force on the batch's states, over next_kl."""
    minimum: Positive = 0.01
    on_exit = cast("OnExit | None", "backtrack")

    def __post_init__(self) -> None:
        validate(self)
        if not self.minimum <= self.scale <= 1.0:
            raise ValueError(f"scale = {self.scale}; allowed: a number in [{self.minimum:g}, 1]")

    @property
    def target_kl(self) -> float:  # type: ignore[override]
        """The bound in force for mean KL(old||new) on the batch's states, nats."""
        return self.scale * self.next_kl

    def violation(self, change: Change) -> float:
        """Return mean KL - target_kl, nats."""
        return average(change.kl) - self.target_kl

    def step_length(self, curvature: float) -> float:
        """Return sqrt(2 target_kl / x'Fx), as for :class:`KLConstraint`."""
        return math.sqrt(2.0 * self.target_kl / curvature)

    def adapt_to_next(self, kl: float) -> Self:
        """Return the region with the bound of the next update; the same one if the KL is NaN."""
        if math.isnan(kl):
            return self
        over = kl / self.next_kl
        factor = math.exp(-self.rate) / over if over > 1.0 else math.exp(self.rate * self.share / (1.0 - self.share))
        return replace(self, scale=min(max(factor * self.scale, self.minimum), 1.0))


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
        return average(change.kl_reference) - self._allowed(change)

    def report(self, change: Change) -> dict[str, float]:
        """Return the bound in force: beyond ``reference_kl``, the KL that the policy had before the update."""
        return {"drift/kl_reference_bound": self._allowed(change)}

    def _allowed(self, change: Change) -> float:
        return max(self.reference_kl, average(change.kl_reference_before))


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
        return average(change.kl_reference_forward) - self._allowed(change)

    def report(self, change: Change) -> dict[str, float]:
        """Return the bound in force: beyond ``reference_forward_kl``, the KL that the policy had before the update."""
        return {"drift/kl_reference_forward_bound": self._allowed(change)}

    def _allowed(self, change: Change) -> float:
        return max(self.reference_forward_kl, average(change.kl_reference_forward_before))


@dataclass(frozen=True)
class TailConstraint(TrustRegion, abc.ABC):
    """A bound on the states that move farthest, held as :class:`KLConstraint` holds its own on the mean of all.

    A mean of 0.01 nats allows a hundredth of the states 1 nat each. What is bounded grows with the states' KL: where
    all of them double, it doubles.
    """

    on_exit = cast("OnExit | None", "backtrack")
    metric: ClassVar[str]
    """Metric of the measured value; that of its bound has ``_bound`` after it."""

    def __post_init__(self) -> None:
        validate(self)

    @property
    @abc.abstractmethod
    def bound(self) -> float:
        """The bound, nats."""

    @abc.abstractmethod
    def tail(self, kl: Array) -> float:
        """Return what is bounded, given the states' KL(old||new) ``[*B]``, nats."""

    def violation(self, change: Change) -> float:
        """Return the measured value - the bound, nats."""
        return self.tail(change.kl) - self.bound

    def step_length(self, curvature: float) -> float:
        """Return sqrt(2 bound / x'Fx), the length if every state had this curvature."""
        return math.sqrt(2.0 * self.bound / curvature)

    def step_within(self, curvature: float, of_states: Callable[[], Array]) -> float:
        """Return sqrt(2 bound / tail(x'F_n x)): a step of length s has KL s^2/2 x'F_n x in state n, to second order.

        Where the tail does not move at all, as that of a low quantile may not, the mean decides.
        """
        tail = self.tail(of_states())
        return self.step_length(tail if tail > 0.0 else curvature)

    def report(self, change: Change) -> dict[str, float]:
        """Return the measured value and its bound, nats."""
        return {self.metric: self.tail(change.kl), f"{self.metric}_bound": self.bound}


@dataclass(frozen=True)
class QuantileConstraint(TailConstraint):
    """Quantile of the states' KL(old||new) <= quantile_kl: the share quantile_level of the states stays within.

    A chance constraint (Charnes & Cooper 1959, "Chance-Constrained Programming") over the states of the batch. The
    states beyond the quantile may move as far as they like: join it with one of the others where they may not. The
    quantile is a state's own KL, as in ``drift/kl_p95``.
    """

    quantile_kl: Positive = 0.03
    quantile_level: Level = 0.95
    metric = "drift/kl_quantile"

    @property
    def bound(self) -> float:
        """The bound, nats."""
        return self.quantile_kl

    def tail(self, kl: Array) -> float:
        """Return the quantile."""
        return quantile(kl, self.quantile_level)


@dataclass(frozen=True)
class CVaRConstraint(TailConstraint):
    """Mean KL(old||new) of the share 1 - quantile_level of the states with the largest <= cvar_kl.

    Conditional value at risk, also called expected shortfall (Rockafellar & Uryasev 2002, "Conditional Value-at-Risk
    for General Loss Distributions", eq. 25, where a state that is partly in the tail counts with that part). It is at
    least the quantile, at least the mean, and at most the largest.
    """

    cvar_kl: Positive = 0.04
    quantile_level: Level = 0.95
    metric = "drift/kl_cvar"

    @property
    def bound(self) -> float:
        """The bound, nats."""
        return self.cvar_kl

    def tail(self, kl: Array) -> float:
        """Return the mean of the tail."""
        return tail_average(kl, self.quantile_level)


@dataclass(frozen=True)
class MaxConstraint(TailConstraint):
    """KL(old||new) <= max_state_kl in every state of the batch: Schulman et al. 2015 (TRPO), eq. 11.

    TRPO's theory bounds the largest KL (theorem 1) and its algorithm, eq. 12, the mean, since a bound in every state
    is many constraints. Here it is one, on the largest of them.
    """

    max_state_kl: Positive = 0.06
    metric = "drift/kl_max"

    @property
    def bound(self) -> float:
        """The bound, nats."""
        return self.max_state_kl

    def tail(self, kl: Array) -> float:
        """Return the largest."""
        return float(kl.max())
