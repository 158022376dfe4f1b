"""Trust regions: what limits one policy update. Immutable; ``adapt`` returns the region of the next update.

A new region overrides the hooks it needs and nothing else; :data:`klrl.trust_region.names.REGIONS` gives it
a name on the command line. Every KL here is the mean over states of KL(old||new), exact, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from typing import Literal, Self, cast

import numpy as np

from klrl.kl import kl_gradient
from klrl.kl.drift import average
from klrl.policy.arrays import Array, clip, minimum, where
from klrl.policy.distributions import Gradient
from klrl.trust_region.change import Change
from klrl.trust_region.coefficients import Coefficient, Fixed
from klrl.validation import Positive, validate

OnExit = Literal["stop", "backtrack"]


def _depth(cls: type, name: str) -> int:
    """How far up its bases a class finds an attribute."""
    return next(i for i, base in enumerate(cls.__mro__) if name in vars(base))


def _differentiate(cls: type, hook: str, function: Callable[[TrustRegion, Change], Array]) -> None:
    @wraps(function)
    def on_tensors(region: TrustRegion, change: Change) -> Array:
        return change.on_tensors(partial(function, region))

    def gradient(region: TrustRegion, change: Change) -> Gradient:
        return change.derivative(partial(function, region))

    setattr(cls, hook, on_tensors)
    setattr(cls, f"{hook}_gradient", gradient)


@dataclass(frozen=True)
class TrustRegion:
    """Limits nothing: every hook is neutral. Also the base class of all regions."""

    # Neutral values, no fields of the dataclass: a region overrides one with a field or a property.
    on_exit = cast("OnExit | None", None)
    """What to do when ``excess`` > 0: keep the last step and stop, or go back inside; ``None``: no bound."""
    target_kl = cast("float | None", None)
    """The bound or aim for the mean KL(old||new), nats, where there is one."""
    clip_range = cast("float | None", None)
    """Half-width of the ratio's clipping interval, where there is one."""
    beta = cast("float | None", None)
    """Coefficient of the penalty, where there is one."""

    def gain(self, change: Change) -> Array:
        """Surrogate objective per state, ``[*B]``: ratio x advantage (TRPO eq. 14; PPO eq. 6)."""
        return change.ratio * change.advantage

    def penalty(self, change: Change) -> Array | float:
        """What is subtracted from the gain, ``[*B]``."""
        del change
        return 0.0

    def gain_gradient(self, change: Change) -> Gradient:
        """Derivative of the gain by the fields of ``change.new``, per state."""
        return _weighted(change.ratio * change.advantage, change.new.score(change.action))

    def penalty_gradient(self, change: Change) -> Gradient | None:
        """Derivative of the penalty by the fields of ``change.new``, per state; ``None`` where there is no penalty."""
        del change
        return None

    def __init_subclass__(cls) -> None:
        """A gain or penalty that comes without its derivative is given tensors, and the derivative is autograd's."""
        super().__init_subclass__()
        for hook in ("gain", "penalty"):
            if _depth(cls, hook) < _depth(cls, f"{hook}_gradient"):
                _differentiate(cls, hook, getattr(cls, hook))

    def excess(self, change: Change) -> float:
        """How far outside the region the change is; <= 0 inside."""
        del change
        return -math.inf

    def step_length(self, curvature: float) -> float:
        """The multiple of x = F^-1 g to try first, given the curvature x'Fx of the KL; infinite if unlimited."""
        del curvature
        return math.inf

    def adapt(self, change: Change) -> Self:
        """The region for the next update, given what the whole of this one did."""
        del change
        return self


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
        return _weighted(where(clipped < plain, 0.0, plain), change.new.score(change.action))

    def _surrogates(self, change: Change) -> tuple[Array, Array]:
        clipped = clip(change.ratio, 1.0 - self.clip_range, 1.0 + self.clip_range)
        return change.ratio * change.advantage, clipped * change.advantage


@dataclass(frozen=True)
class KLConstraint(TrustRegion):
    """Mean KL(old||new) <= target_kl: Schulman et al. 2015 (TRPO), eq. 14.

    ``on_exit="backtrack"`` is a constraint: an update that left the region is pulled back inside.
    ``on_exit="stop"`` is early stopping: the update ends, and the step that left the region is kept.
    """

    target_kl: Positive = 0.01
    on_exit: OnExit = "backtrack"

    def __post_init__(self) -> None:
        validate(self)

    def excess(self, change: Change) -> float:
        """Mean KL - target_kl, nats."""
        return average(change.kl) - self.target_kl

    def step_length(self, curvature: float) -> float:
        """sqrt(2 target_kl / x'Fx): TRPO, appendix C."""
        return math.sqrt(2.0 * self.target_kl / curvature)


@dataclass(frozen=True)
class KLPenalty(TrustRegion):
    """Subtracts beta KL(old||new) from the surrogate: Schulman et al. 2017 (PPO), eq. 8."""

    coefficient: Coefficient = field(default_factory=Fixed)

    @property
    def target_kl(self) -> float | None:  # type: ignore[override]
        """What the coefficient aims at."""
        return self.coefficient.target_kl

    @property
    def beta(self) -> float:  # type: ignore[override]
        """The coefficient in force."""
        return self.coefficient.beta

    def penalty(self, change: Change) -> Array:
        """beta KL(old||new), ``[*B]``."""
        return self.beta * change.kl

    def penalty_gradient(self, change: Change) -> Gradient:
        """Beta times that of KL(old||new)."""
        return tuple(self.beta * x for x in kl_gradient(change.old, change.new))

    def step_length(self, curvature: float) -> float:
        """1 / beta: the maximum of g'x - beta/2 x'Fx along F^-1 g."""
        del curvature
        return 1.0 / self.beta

    def adapt(self, change: Change) -> Self:
        """The coefficient looks once at the KL of the whole update."""
        return replace(self, coefficient=self.coefficient.update(average(change.kl)))


@dataclass(frozen=True, init=False)
class All(TrustRegion):
    """Several regions at once: penalties add, the largest excess and the shortest step count.

    At most one of them may redefine the gain.
    """

    regions: tuple[TrustRegion, ...]

    def __init__(self, *regions: TrustRegion) -> None:
        if len([r for r in regions if _redefines_gain(r)]) > 1:
            raise ValueError(f"trust_region = {regions}; allowed: at most one region with a gain of its own (clip)")
        object.__setattr__(self, "regions", regions)

    @property
    def on_exit(self) -> OnExit | None:  # type: ignore[override]
        """To go back inside is the stricter wish and wins."""
        wishes = {r.on_exit for r in self.regions}
        return "backtrack" if "backtrack" in wishes else "stop" if "stop" in wishes else None

    @property
    def target_kl(self) -> float | None:  # type: ignore[override]
        """The smallest bound; where nothing is bounded, the smallest aim."""
        bounds = [r.target_kl for r in self.regions if r.on_exit and r.target_kl is not None]
        return min(bounds) if bounds else self._smallest(lambda r: r.target_kl)

    @property
    def clip_range(self) -> float | None:  # type: ignore[override]
        """That of the one that clips."""
        return self._smallest(lambda r: r.clip_range)

    @property
    def beta(self) -> float | None:  # type: ignore[override]
        """The sum."""
        betas = [r.beta for r in self.regions if r.beta is not None]
        return sum(betas) if betas else None

    def gain(self, change: Change) -> Array:
        """That of the one region that has its own."""
        return self._gaining.gain(change)

    def gain_gradient(self, change: Change) -> Gradient:
        """That of the same region."""
        return self._gaining.gain_gradient(change)

    def penalty(self, change: Change) -> Array | float:
        """The sum."""
        return sum((r.penalty(change) for r in self.regions), 0.0)

    def penalty_gradient(self, change: Change) -> Gradient | None:
        """The sum."""
        parts = [g for r in self.regions if (g := r.penalty_gradient(change)) is not None]
        return tuple(sum(xs) for xs in zip(*parts, strict=True)) if parts else None

    def excess(self, change: Change) -> float:
        """The largest; NaN if one is NaN."""
        return float(np.max([r.excess(change) for r in self.regions], initial=-math.inf))

    def step_length(self, curvature: float) -> float:
        """The smallest."""
        return min((r.step_length(curvature) for r in self.regions), default=math.inf)

    def adapt(self, change: Change) -> All:
        """Each for itself."""
        return All(*(r.adapt(change) for r in self.regions))

    @property
    def _gaining(self) -> TrustRegion:
        return next((r for r in self.regions if _redefines_gain(r)), TrustRegion())

    def _smallest(self, read: Callable[[TrustRegion], float | None]) -> float | None:
        return min((x for r in self.regions if (x := read(r)) is not None), default=None)


def _weighted(weight: Array, gradient: Gradient) -> Gradient:
    """Each state's gradient times its weight ``[*B]``."""
    weight = weight.reshape(*weight.shape, 1)
    return tuple([weight * x for x in gradient])


def _redefines_gain(region: TrustRegion) -> bool:
    if isinstance(region, All):
        return any(_redefines_gain(r) for r in region.regions)
    return type(region).gain is not TrustRegion.gain
