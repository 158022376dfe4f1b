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

from klrl.kl import kl_gradient
from klrl.kl.drift import average
from klrl.policy.arrays import Array
from klrl.policy.distributions import Gradient
from klrl.trust_region.change import Change
from klrl.trust_region.coefficients import Coefficient, Fixed
from klrl.validation import Positive, validate

OnExit = Literal["stop", "backtrack"]
DEFAULT_TARGET_KL = 0.01
"""Bound or aim for the mean KL(old||new) where nothing else is asked for, nats: TRPO's."""


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
    lr_scale = 1.0
    """What the actor's learning rate is multiplied by; the critic's stays as it is."""

    def gain(self, change: Change) -> Array:
        """Surrogate objective per state, ``[*B]``: ratio x advantage (TRPO eq. 14; PPO eq. 6)."""
        return change.ratio * change.advantage

    def penalty(self, change: Change) -> Array | float:
        """What is subtracted from the gain, ``[*B]``."""
        del change
        return 0.0

    def gain_gradient(self, change: Change) -> Gradient:
        """Derivative of the gain by the fields of ``change.new``, per state."""
        return weighted(change.ratio * change.advantage, change.new.score(change.action))

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
class KLConstraint(TrustRegion):
    """Mean KL(old||new) <= target_kl: Schulman et al. 2015 (TRPO), eq. 14.

    ``on_exit="backtrack"`` is a constraint: an update that left the region is pulled back inside.
    ``on_exit="stop"`` is early stopping: the update ends, and the step that left the region is kept.
    """

    target_kl: Positive = DEFAULT_TARGET_KL
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
class RatioDeviation(TrustRegion):
    """Ends the epochs once the ratios are too far from 1: mean |r - 1| > ratio_deviation.

    Sun et al. 2022 ("You May Not Need Ratio Clipping in PPO"), ESPO: an unclipped surrogate, and this stopping rule.
    In expectation over old(a|s) that mean is twice the total variation of the policies, so by Pinsker's inequality
    mean KL(old||new) >= ratio_deviation^2 / 2 outside; no KL is bounded from above.
    """

    ratio_deviation: Positive = 0.25
    on_exit = cast("OnExit | None", "stop")

    def __post_init__(self) -> None:
        validate(self)

    def excess(self, change: Change) -> float:
        """Mean |r - 1| - ratio_deviation."""
        return average(abs(change.ratio - 1.0)) - self.ratio_deviation


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


@dataclass(frozen=True, kw_only=True)
class AdaptiveLearningRate(TrustRegion):
    """Scales the actor's learning rate: / 1.5 where mean KL(old||new) > 2 target_kl, x 1.5 where it is < target_kl / 2.

    The rule of rsl_rl (Rudin et al. 2022, "Learning to Walk in Minutes"), which looks at every minibatch and changes
    the critic's rate, too; here it looks once, at the whole update, and the critic is left alone. It aims, it does
    not bound. The scale stays in [minimum, maximum], rsl_rl's bounds (1e-5 and 1e-2) over its first rate (1e-3).
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
        """The scale looks once at the KL of the whole update; a KL of 0 (no step) says nothing about the rate."""
        kl = average(change.kl)
        if kl > 2.0 * self.target_kl:
            return replace(self, scale=max(self.scale / 1.5, self.minimum))
        if 0.0 < kl < self.target_kl / 2.0:
            return replace(self, scale=min(self.scale * 1.5, self.maximum))
        return self


def weighted(weight: Array, gradient: Gradient) -> Gradient:
    """Each state's gradient times its weight ``[*B]``."""
    weight = weight.reshape(*weight.shape, 1)
    return tuple([weight * x for x in gradient])
