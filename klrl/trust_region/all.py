"""Several trust regions at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from klrl.policy.arrays import Array
from klrl.trust_region.region import OnExit, TrustRegion

if TYPE_CHECKING:
    from klrl.policy.distributions import Distribution, Gradient
    from klrl.trust_region.change import Change


@dataclass(frozen=True, init=False)
class All(TrustRegion):
    """Several regions at once: penalties add, the largest violation and the shortest step count.

    At most one of them may redefine the surrogate.
    """

    regions: tuple[TrustRegion, ...]

    def __init__(self, *regions: TrustRegion) -> None:
        own = [type(r).__name__ for r in regions if redefines(r, "surrogate")]
        if len(own) > 1:
            known = f"at most one region with a surrogate of its own, as {' and '.join(own)} have"
            raise ValueError(f"trust_region = {regions}; allowed: {known}")
        object.__setattr__(self, "regions", regions)

    @property
    def on_exit(self) -> OnExit | None:  # type: ignore[override]
        """The members' wish: "backtrack" if one has it, which holds all bounds and stops no epochs; else "stop"."""
        wishes = {r.on_exit for r in self.regions}
        return "backtrack" if "backtrack" in wishes else "stop" if "stop" in wishes else None

    @property
    def target_kl(self) -> float | None:  # type: ignore[override]
        """The smallest bound; where nothing is bounded, the smallest aim."""
        bounds = [r.target_kl for r in self.regions if r.on_exit and r.target_kl is not None]
        return min(bounds) if bounds else self._smallest(lambda r: r.target_kl)

    @property
    def next_kl(self) -> float | None:  # type: ignore[override]
        """The smallest bound on the next states."""
        return self._smallest(lambda r: r.next_kl)

    @property
    def clip_range(self) -> float | None:  # type: ignore[override]
        """Half-width of the member that clips."""
        return self._smallest(lambda r: r.clip_range)

    @property
    def beta(self) -> float | None:  # type: ignore[override]
        """The sum of the members' coefficients."""
        betas = [r.beta for r in self.regions if r.beta is not None]
        return sum(betas) if betas else None

    @property
    def lr_scale(self) -> float:  # type: ignore[override]
        """The product of the members' factors."""
        return math.prod(r.lr_scale for r in self.regions)

    def surrogate(self, change: Change) -> Array:
        """Return the surrogate of the one member that has its own, else the plain one."""
        return self._with_surrogate.surrogate(change)

    def surrogate_gradient(self, change: Change) -> Gradient:
        """Return the derivative of that surrogate."""
        return self._with_surrogate.surrogate_gradient(change)

    def penalty(self, change: Change) -> Array | float:
        """Return the sum of the members' penalties."""
        return sum((r.penalty(change) for r in self.regions), 0.0)

    def penalty_gradient(self, change: Change) -> Gradient | None:
        """Return the sum of the members' derivatives."""
        gradients = [g for r in self.regions if (g := r.penalty_gradient(change)) is not None]
        return tuple(sum(xs) for xs in zip(*gradients, strict=True)) if gradients else None

    def violation(self, change: Change) -> float:
        """Return the largest violation; NaN if one is NaN."""
        return float(np.max([r.violation(change) for r in self.regions], initial=-math.inf))

    def project(self, new: Distribution, old: Distribution) -> Distribution:
        """Project by one member after the other."""
        for region in self.regions:
            new = region.project(new, old)
        return new

    def check(self, policy: Distribution) -> None:
        """Refuse a policy that a member cannot judge."""
        for region in self.regions:
            region.check(policy)

    def step_length(self, curvature: float) -> float:
        """Return the shortest of the bounds' lengths and that of all penalties together, whose curvatures add."""
        return self._shortest(lambda r: r.step_length(curvature))

    def step_within(self, curvature: float, of_states: Callable[[], Array]) -> float:
        """Return the same of the lengths with which single states stay inside."""
        return self._shortest(lambda r: r.step_within(curvature, of_states))

    def report(self, change: Change) -> dict[str, float]:
        """Return what the members report; of two that bound the same, that which is nearer to its bound, or beyond."""
        reporting = [r for r in members(self) if redefines(r, "report")]
        found: dict[str, float] = {}
        for region in sorted(reporting, key=lambda r: r.violation(change)):
            found |= region.report(change)
        return found

    @property
    def reads_reference(self) -> bool:  # type: ignore[override]
        """True if a member measures from a reference policy."""
        return any(r.reads_reference for r in self.regions)

    def scheduled(self, progress_remaining: float) -> All:
        """Schedule every member."""
        return All(*(r.scheduled(progress_remaining) for r in self.regions))

    def at_rate(self, share: float) -> All:
        """Tell every member."""
        return All(*(r.at_rate(share) for r in self.regions))

    def adapt_within(self, change: Change, share: float) -> All:
        """Adapt every member."""
        return All(*(r.adapt_within(change, share) for r in self.regions))

    def adapt(self, change: Change) -> All:
        """Adapt every member."""
        return All(*(r.adapt(change) for r in self.regions))

    def adapt_to_next(self, kl: float) -> All:
        """Adapt every member."""
        return All(*(r.adapt_to_next(kl) for r in self.regions))

    @property
    def _with_surrogate(self) -> TrustRegion:
        return next((r for r in self.regions if redefines(r, "surrogate")), TrustRegion())

    def _shortest(self, length: Callable[[TrustRegion], float]) -> float:
        penalised = [r for r in members(self) if redefines(r, "penalty")]
        bounds = [length(r) for r in members(self) if r not in penalised]
        slope = sum(1.0 / length(r) for r in penalised)
        return min([*bounds, 1.0 / slope if slope > 0.0 else math.inf])

    def _smallest(self, read: Callable[[TrustRegion], float | None]) -> float | None:
        return min((x for r in self.regions if (x := read(r)) is not None), default=None)


def redefines(region: TrustRegion, hook: str) -> bool:
    """Tell whether a region, or a member of it, has a hook of its own."""
    plain = getattr(TrustRegion, hook)
    return any(hook in vars(r) or getattr(type(r), hook) is not plain for r in members(region))


def members(region: TrustRegion) -> list[TrustRegion]:
    """Return the regions that a region joins, all levels of them, or the region alone."""
    return [member for r in region.regions for member in members(r)] if isinstance(region, All) else [region]
