"""Trust regions that change the surrogate objective itself. r is the probability ratio, A the advantage.

Each equals A at the old policy and has the gradient of r A there; none bounds a divergence.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from operator import sub
from typing import TYPE_CHECKING

from klrl.policy.arrays import Array, clip, minimum, where
from klrl.trust_region.region import TrustRegion, weighted
from klrl.validation import Fraction, Positive, validate

if TYPE_CHECKING:
    from klrl.policy.distributions import Distribution, Gradient
    from klrl.trust_region.change import Change

__all__ = ["SPO", "Clip", "DivergenceMask", "KLMask", "Rollback", "TotalVariationMask", "TrulyPPO"]


@dataclass(frozen=True)
class Clip(TrustRegion):
    """Removes the incentive to move the ratio out of [1 - clip_range, 1 + clip_range].

    Schulman et al. 2017 (PPO), eq. 7: min(r A, clip(r, 1 - eps, 1 + eps) A). It bounds no divergence.
    """

    clip_range: Positive = 0.2

    def __post_init__(self) -> None:
        validate(self)

    def surrogate(self, change: Change) -> Array:
        """Return the smaller of the plain and the clipped surrogate, ``[*B]``."""
        plain, clipped = self._surrogates(change)
        return minimum(plain, clipped)

    def surrogate_gradient(self, change: Change) -> Gradient:
        """Return the derivative of the plain surrogate where that is the smaller one, else 0."""
        plain, clipped = self._surrogates(change)
        return weighted(where(clipped < plain, 0.0, plain), change.new.score(change.action))

    def _surrogates(self, change: Change) -> tuple[Array, Array]:
        clipped = clip(change.ratio, 1.0 - self.clip_range, 1.0 + self.clip_range)
        return change.ratio * change.advantage, clipped * change.advantage


@dataclass(frozen=True)
class SPO(TrustRegion):
    """Pulls the ratio back to 1 by a parabola: r A - |A| / (2 clip_range) (r - 1)^2.

    Xie et al. 2025 ("Simple Policy Optimization"), whose optimum is r = 1 + sign(A) clip_range, the end of PPO's
    interval; beyond it the gradient points back, where that of the clipped surrogate is zero.
    """

    clip_range: Positive = 0.2

    def __post_init__(self) -> None:
        validate(self)

    def surrogate(self, change: Change) -> Array:
        """Return the plain surrogate minus the parabola, ``[*B]``."""
        r, A = change.ratio, change.advantage
        return r * A - abs(A) / (2.0 * self.clip_range) * (r - 1.0) ** 2

    def surrogate_gradient(self, change: Change) -> Gradient:
        """Return (A - |A| / clip_range (r - 1)) r times the score."""
        r, A = change.ratio, change.advantage
        return weighted((A - abs(A) / self.clip_range * (r - 1.0)) * r, change.new.score(change.action))


@dataclass(frozen=True)
class Rollback(TrustRegion):
    """Lets the surrogate fall again beyond [1 - clip_range, 1 + clip_range], on the side the advantage pushes to.

    Wang et al. 2020 ("Truly Proximal Policy Optimization"), PPO-RB: min(r A, f(r) A), where f(r) = r inside and
    clip(r) - rollback_slope (r - clip(r)) outside. A slope of 0 is PPO's clip.
    """

    clip_range: Positive = 0.2
    rollback_slope: Positive = 0.3

    def __post_init__(self) -> None:
        validate(self)

    def surrogate(self, change: Change) -> Array:
        """Return the smaller of the plain and the rolled-back surrogate, ``[*B]``."""
        plain, rolled_back = self._surrogates(change)
        return minimum(plain, rolled_back)

    def surrogate_gradient(self, change: Change) -> Gradient:
        """Return the derivative of the smaller one."""
        plain, rolled_back = self._surrogates(change)
        weight = where(rolled_back < plain, -self.rollback_slope * plain, plain)
        return weighted(weight, change.new.score(change.action))

    def _surrogates(self, change: Change) -> tuple[Array, Array]:
        r, A = change.ratio, change.advantage
        clipped = clip(r, 1.0 - self.clip_range, 1.0 + self.clip_range)
        return r * A, (clipped - self.rollback_slope * (r - clipped)) * A


@dataclass(frozen=True)
class TrulyPPO(TrustRegion):
    """Subtracts the KL in states that are out of bounds: r A - rollback_slope (KL - state_kl).

    Wang et al. 2020 ("Truly Proximal Policy Optimization"), applied where KL(old||new) >= state_kl and r A >= A, so
    that a change for the worse can still be undone; r A elsewhere. The paper subtracts rollback_slope * state_kl
    everywhere instead of adding it there: the same gradient, but here the old policy's surrogate is A. Slope and bound
    are those of its code for MuJoCo. ``state_kl`` bounds single states, softly; it is no ``target_kl``.
    """

    state_kl: Positive = 0.03
    rollback_slope: Positive = 5.0

    def __post_init__(self) -> None:
        validate(self)

    def surrogate(self, change: Change) -> Array:
        """Return the plain surrogate, less the KL beyond ``state_kl`` in states out of bounds, ``[*B]``."""
        plain = change.ratio * change.advantage
        return where(self._outside(change), plain - self.rollback_slope * (change.kl - self.state_kl), plain)

    def surrogate_gradient(self, change: Change) -> Gradient:
        """Return the derivative of the plain surrogate, less rollback_slope times that of the KL out of bounds."""
        slope = where(self._outside(change), self.rollback_slope, 0.0 * change.advantage)
        plain = weighted(change.ratio * change.advantage, change.new.score(change.action))
        return tuple(map(sub, plain, weighted(slope, change.kl_gradient)))

    def _outside(self, change: Change) -> Array:
        """Mark the states whose KL is out of bounds and whose surrogate improved."""
        return (change.kl >= self.state_kl) & (change.ratio * change.advantage >= change.advantage)


@dataclass(frozen=True)
class DivergenceMask(TrustRegion, abc.ABC):
    """Drops samples that would drive a state farther out: A instead of r A where its divergence is over a bound.

    Qi et al. 2026 ("Rethinking the Trust Region in LLM Reinforcement Learning"), DPPO: a sample counts unless its
    ratio has already moved to the side that its advantage pushes to, (r - 1) A > 0, and its state's divergence is over
    the bound. For the vocabularies there the divergence is approximated; here it is exact. Dropped samples have the
    value A here and 0 there, the same gradient: to a line search what was gained on them is worth nothing.
    """

    def __post_init__(self) -> None:
        validate(self)

    @abc.abstractmethod
    def outside(self, change: Change) -> Array:
        """Mark the states whose divergence is over the bound, ``[*B]``."""

    def surrogate(self, change: Change) -> Array:
        """Return the plain surrogate, or A where the sample is dropped, ``[*B]``."""
        return where(self._dropped(change), change.advantage, change.ratio * change.advantage)

    def surrogate_gradient(self, change: Change) -> Gradient:
        """Return the derivative of the plain surrogate, or 0 where the sample is dropped."""
        plain = change.ratio * change.advantage
        return weighted(where(self._dropped(change), 0.0 * plain, plain), change.new.score(change.action))

    def _dropped(self, change: Change) -> Array:
        return self.outside(change) & ((change.ratio - 1.0) * change.advantage > 0.0)


@dataclass(frozen=True)
class KLMask(DivergenceMask):
    """DPPO's mask by KL(old||new) > state_kl. ``state_kl`` is a single state's; it is no ``target_kl``."""

    state_kl: Positive = 0.05

    def outside(self, change: Change) -> Array:
        """Mark the states whose KL(old||new) is over ``state_kl``."""
        return change.kl > self.state_kl


@dataclass(frozen=True)
class TotalVariationMask(DivergenceMask):
    """DPPO's mask by total variation > state_tv, where that has a closed form.

    It has one for discrete actions and for Gaussians of one dimension.
    """

    state_tv: Fraction = 0.15

    def outside(self, change: Change) -> Array:
        """Mark the states whose total variation is over ``state_tv``."""
        return change.total_variation > self.state_tv

    def check(self, policy: Distribution) -> None:
        """Refuse a policy whose total variation has no closed form.

        Raises:
            ValueError: names the family.
        """
        from klrl.kl import total_variation

        try:
            total_variation(policy, policy.map(lambda x: x + 0.1))
        except TypeError:
            given = f"trust_region = 'dppo-tv' with a policy that is a {type(policy).__name__}"
            known = "where total variation has a closed form (up to 4,096 joint actions, Gaussians of one dimension)"
            raise ValueError(f"{given}; allowed: {known}; 'dppo-kl' anywhere") from None
