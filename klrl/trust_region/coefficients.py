"""Penalty coefficients beta: immutable and bounded; ``update`` returns the next one, once per policy update."""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from typing import Self

from klrl.validation import Positive, validate


class Coefficient(abc.ABC):
    """A schedule for the coefficient of a penalty.

    ``beta`` is the coefficient in force; ``target_kl`` the mean KL(old||new) the schedule aims at, in nats,
    or ``None`` where it aims at nothing.
    """

    beta: float
    target_kl: float | None = None

    @abc.abstractmethod
    def update(self, kl: float) -> Self:
        """The coefficient for the next policy update, given the mean KL(old||new) of the last one."""


@dataclass(frozen=True)
class Fixed(Coefficient):
    """beta never changes."""

    beta: Positive = 1.0

    def __post_init__(self) -> None:
        validate(self)

    def update(self, kl: float) -> Self:
        """Itself."""
        return self


@dataclass(frozen=True, kw_only=True)
class Adaptive(Coefficient):
    """Doubles beta where the policy moved too far, halves it where it moved too little.

    Schulman et al. 2017 (PPO), section 4: beta / 2 if d < d_targ / 1.5, 2 beta if d > 1.5 d_targ; here kept
    in [minimum, maximum], so that it can always recover.
    """

    target_kl: Positive = 0.01
    beta: Positive = 1.0
    minimum: Positive = 1e-4
    maximum: Positive = 1e4

    def __post_init__(self) -> None:
        validate(self)
        if not self.minimum <= self.beta <= self.maximum:
            raise ValueError(f"beta = {self.beta}; allowed: a number in [{self.minimum:g}, {self.maximum:g}]")

    def update(self, kl: float) -> Self:
        """Halve, keep or double, inside the bounds."""
        if kl < self.target_kl / 1.5:
            return replace(self, beta=max(self.beta / 2.0, self.minimum))
        if kl > self.target_kl * 1.5:
            return replace(self, beta=min(self.beta * 2.0, self.maximum))
        return self
