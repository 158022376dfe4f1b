"""Projections: move every state's new distribution into a ball around its old one, and maximise the surrogate there.

Otto et al. 2021 ("Differentiable Trust Region Layers for Deep Reinforcement Learning"). The gradient goes through the
projection; a regression term draws the network towards its own projection. The network that acts in the end must not
be outside: after the epochs PPO shortens the update until projecting changes nothing in any state of the batch. So the
network that acts and is measured is its own projection.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from klrl.policy.arrays import expm1, log1p, where
from klrl.trust_region.region import TrustRegion
from klrl.validation import NonNegative, Positive, validate

if TYPE_CHECKING:
    from torch import Tensor

    from klrl.policy.distributions import DiagGaussian, Distribution
    from klrl.trust_region.change import Change

__all__ = ["FrobeniusProjection", "KLProjection", "Projection", "WassersteinProjection"]


@dataclass(frozen=True)
class Projection(TrustRegion, abc.ABC):
    """The surrogate of the projected policy, minus regression_coef times KL(new||projection)."""

    regression_coef: NonNegative = 10.0

    def __post_init__(self) -> None:
        validate(self)

    @abc.abstractmethod
    def share(self, new: Distribution, old: Distribution) -> Tensor:
        """Return how far to go from old (0) to new (1), per state, ``[*B]``, differentiable; 1 inside the ball."""

    @abc.abstractmethod
    def between(self, new: Distribution, old: Distribution, share: Tensor) -> Distribution:
        """Return the distributions at that share of the way."""

    def project(self, new: Distribution, old: Distribution) -> Distribution:
        """Return new where it is inside the ball around old, else the nearest distribution on the ball; of tensors.

        Where new is so far away that floating point cannot represent a way to it, the result is old.
        """
        share = self.share(new, old)
        on_the_ball = (share > 0.0) & (share < 1.0)
        away = share <= 0.0
        moved = self.between(new[on_the_ball], old[on_the_ball], share[on_the_ball])

        def chosen(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
            ends = where(away.reshape(*away.shape, *[1] * (x.ndim - away.ndim)), y, x)
            return ends.index_put((on_the_ball,), z)

        return new.with_parameters(*map(chosen, new.parameters, old.parameters, moved.parameters))

    def surrogate(self, change: Change) -> Tensor:
        """Return the surrogate of the projected policy, minus the regression, ``[*B]``."""
        from klrl.kl import kl_divergence

        projected = self.project(change.new, change.old)
        surrogate = TrustRegion.surrogate(self, replace(change, new=projected))
        return surrogate - self.regression_coef * kl_divergence(change.new, projected.detach())


@dataclass(frozen=True)
class KLProjection(Projection):
    """KL(new||old) <= state_kl in every state, by the projection that is nearest in KL(projection||new).

    The solution of that problem is a geometric mixture of new and old, whose share is the root of one equation per
    state; its derivative is that of the implicit function. The direction is KL(new||old): on the geometric path the
    problem with KL(old||new) has no such solution. To second order the two agree; ``drift/kl`` measures KL(old||new).
    """

    state_kl: Positive = 0.03

    def share(self, new: Distribution, old: Distribution) -> Tensor:
        """Return the root t of KL(between(t)||old) = state_kl, after a Newton step, which has the root's derivative."""
        from klrl.trust_region.geometric import share_within

        return share_within(self.state_kl, new, old)

    def between(self, new: Distribution, old: Distribution, share: Tensor) -> Distribution:
        """Return new^share old^(1 - share), normalised."""
        from klrl.trust_region.geometric import between

        return between(new, old, share)


@dataclass(frozen=True)
class _Straight(Projection, abc.ABC):
    """Ball that is Euclidean in coordinates of the Gaussians, taken in units of the old standard deviation."""

    state_distance: Positive = 0.25

    @abc.abstractmethod
    def scale(self, log_ratio: Tensor) -> Tensor:
        """Return the second coordinate minus 1, given log(std / old std)."""

    @abc.abstractmethod
    def log_ratio(self, scale: Tensor) -> Tensor:
        """Invert :meth:`scale`."""

    def share(self, new: Distribution, old: Distribution) -> Tensor:
        """Return state_distance over the distance where the distance is larger, else 1."""
        new, old = _normals(new, old)
        shift, scale = (new.mean - old.mean) / old.std, self.scale(new.log_std - old.log_std)
        square = (shift.square() + scale.square()).sum(-1)
        outside = square > self.state_distance**2
        return where(outside, self.state_distance * where(outside, square, 1.0).rsqrt(), 1.0)

    def between(self, new: Distribution, old: Distribution, share: Tensor) -> Distribution:
        """Return the distributions on the straight line in those coordinates."""
        p, q = _normals(new, old)
        t = share.unsqueeze(-1)
        log_std = q.log_std + self.log_ratio(t * self.scale(p.log_std - q.log_std))
        return new.with_parameters(q.mean + t * (p.mean - q.mean), log_std)


@dataclass(frozen=True)
class WassersteinProjection(_Straight):
    """W_2(new, old) <= state_distance in every state, both in units of the old standard deviations.

    W_2^2 = sum_i ((mu_i - mu_old_i) / s_old_i)^2 + (s_i / s_old_i - 1)^2: a ball in means and standard deviations.
    Only for diagonal Gaussians, squashed or not.
    """

    def scale(self, log_ratio: Tensor) -> Tensor:
        """Return s / s_old - 1."""
        return expm1(log_ratio)

    def log_ratio(self, scale: Tensor) -> Tensor:
        """Return log(1 + scale)."""
        return log1p(scale)


@dataclass(frozen=True)
class FrobeniusProjection(_Straight):
    """|(mu - mu_old) / s_old|^2 + |S / S_old - 1|_F^2 <= state_distance^2 in every state, S the covariance.

    A ball in means and variances, in units of the old ones. Only for diagonal Gaussians, squashed or not.
    """

    def scale(self, log_ratio: Tensor) -> Tensor:
        """Return (s / s_old)^2 - 1."""
        return expm1(2.0 * log_ratio)

    def log_ratio(self, scale: Tensor) -> Tensor:
        """Return 1/2 log(1 + scale)."""
        return 0.5 * log1p(scale)


def _normals(*records: Distribution) -> list[DiagGaussian]:
    """Return the Gaussians, before the tanh where there is one.

    Raises:
        ValueError: a record of another family.
    """
    from klrl.policy.distributions import DiagGaussian, SquashedGaussian

    normals = [r.base if isinstance(r, SquashedGaussian) else r for r in records]
    for other in (r for r in normals if not isinstance(r, DiagGaussian)):
        raise ValueError(
            f"trust_region projects a {type(other).__name__}; allowed: Gaussian policies ('projection' any)"
        )
    return cast("list[DiagGaussian]", normals)
