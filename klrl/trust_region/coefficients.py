"""Penalty coefficients beta: immutable and bounded; ``update`` returns the next one, once per policy update."""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass, replace
from typing import Annotated, Self

from klrl.validation import Bounds, Fraction, Positive, validate

__all__ = ["Adaptive", "Coefficient", "Dual", "Fixed", "Proportional"]


class Coefficient(abc.ABC):
    """A schedule for the coefficient of a penalty.

    ``beta`` is the coefficient in force; ``target_kl`` the mean KL(old||new) the schedule aims at, in nats,
    or ``None`` where it aims at nothing.
    """

    beta: float
    target_kl: float | None = None

    @abc.abstractmethod
    def update(self, kl: float) -> Self:
        """Return the coefficient for the next policy update, given the mean KL(old||new) of the last one."""

    def at_rate(self, share: float) -> Self:
        """Return the coefficient for an update whose step size is this share of the training's first."""
        del share
        return self


@dataclass(frozen=True)
class Fixed(Coefficient):
    """A constant beta."""

    beta: Positive = 1.0

    def __post_init__(self) -> None:
        validate(self)

    def update(self, kl: float) -> Self:
        """Return the same coefficient."""
        return self


@dataclass(frozen=True, kw_only=True)
class _Bounded(Coefficient):
    """Schedule that aims at ``target_kl`` and keeps beta in [minimum, maximum], so that it can always recover.

    A KL that falls short because the learning rate has fallen is no reason for a smaller beta, which would be far too
    small for the next training: short of its aim, a KL counts as what it would be at the training's first rate, but as
    no more than the aim. KL grows with the rate's square where nothing else stops the policy, and not at all where the
    penalty does: here it counts as if it grew with the rate.
    """

    target_kl: Positive = 0.01
    beta: Positive = 1.0
    minimum: Positive = 1e-4
    maximum: Positive = 1e4
    rate_share: Positive = 1.0
    """Step size of the update over the training's first one."""

    def __post_init__(self) -> None:
        validate(self)
        if not self.minimum <= self.beta <= self.maximum:
            raise ValueError(f"beta = {self.beta}; allowed: a number in [{self.minimum:g}, {self.maximum:g}]")

    def at_rate(self, share: float) -> Self:
        """Remember the share, 1 where the rate has risen."""
        return replace(self, rate_share=min(share, 1.0))

    def _over_aim(self, kl: float) -> float:
        """Return the KL, as it counts, over its aim."""
        ratio = kl / self.target_kl
        return min(ratio / self.rate_share, 1.0) if ratio < 1.0 else ratio

    def _times(self, factor: float) -> Self:
        return replace(self, beta=min(max(factor * self.beta, self.minimum), self.maximum))


@dataclass(frozen=True, kw_only=True)
class Adaptive(_Bounded):
    """Doubles beta if the policy moved too far, halves it if the policy moved too little.

    Schulman et al. 2017 (PPO), section 4: beta / 2 if d < d_targ / 1.5, 2 beta if d > 1.5 d_targ; here kept
    in [minimum, maximum].
    """

    def update(self, kl: float) -> Self:
        """Halve, keep or double beta, within the bounds."""
        ratio = self._over_aim(kl)
        if ratio < 1.0 / 1.5:
            return self._times(0.5)
        if ratio > 1.5:
            return self._times(2.0)
        return self


@dataclass(frozen=True, kw_only=True)
class Proportional(_Bounded):
    """Changes beta in proportion to how far the KL missed its aim: beta (1 + K clip(KL / target_kl - 1, -0.2, 0.2)).

    Ziegler et al. 2019 ("Fine-Tuning Language Models from Human Preferences"), section 2.2. Their K is 0.1, in
    their code, as in TRL's, sequences of a batch / horizon; an agent makes fewer and larger updates, so here it is 1:
    beta changes by at most a fifth per update.
    """

    proportion: Fraction = 1.0
    """K, the largest relative change of beta over 0.2."""

    def update(self, kl: float) -> Self:
        """Change beta by at most a factor of 1 +- 0.2 K, within the bounds; keep it if the KL is NaN."""
        error = self._over_aim(kl) - 1.0
        if math.isnan(error):
            return self
        return self._times(1.0 + self.proportion * min(max(error, -0.2), 0.2))


@dataclass(frozen=True, kw_only=True)
class Dual(_Bounded):
    """Multiplier of the constraint KL <= target_kl, by ascent on its dual: beta e^{rate min(KL / target - 1, 1)}.

    Boyd and Vandenberghe 2004 ("Convex Optimization"), section 5: dL/d beta = KL - target_kl, where
    L = E[surrogate] - beta (KL - target_kl). The ascent is on log beta, in units of the target: near the solution the
    KL falls as 1 / beta^2, so the error of log beta shrinks by 1 - 2 rate per update, whatever the scales of advantages
    and target. On beta itself that would be 1 - 2 rate target_kl / beta: every task would need a rate of its own, and
    beta would have to be kept from becoming negative. A KL cannot fall short of its target by more than the target, so
    an excess counts as at most the target, too: otherwise a few wild updates would drive beta up, and all others would
    fall short.
    """

    rate: Annotated[float, Bounds(0.0, 1.0, open_below=True)] = 0.2
    """Step size of the ascent; 0.5 is Newton's method where the KL falls as 1 / beta^2, 1 no longer converges."""

    def update(self, kl: float) -> Self:
        """Take one step of the ascent, within the bounds; keep beta if the KL is NaN."""
        violation = self._over_aim(kl) - 1.0
        return self if math.isnan(violation) else self._times(math.exp(self.rate * min(violation, 1.0)))


SCHEDULES: dict[str, type[Coefficient]] = {
    "fixed": Fixed,
    "adaptive": Adaptive,
    "proportional": Proportional,
    "dual": Dual,
}
"""Schedules by name; NAME-penalty is the trust region with such a coefficient."""
