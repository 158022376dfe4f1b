"""Regions that subtract a multiple of a divergence from the surrogate."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Self

from klrl.policy.arrays import Array, average
from klrl.trust_region.coefficients import Coefficient, Dual, Fixed
from klrl.trust_region.region import TrustRegion, weighted
from klrl.validation import Bounds, Fraction, Positive, validate

if TYPE_CHECKING:
    from klrl.policy.distributions import Gradient
    from klrl.trust_region.change import Change

__all__ = ["KLPenalty", "MirrorDescent", "RatioVariancePenalty", "ReferenceForwardPenalty", "ReferencePenalty"]


@dataclass(frozen=True)
class KLPenalty(TrustRegion):
    """Subtracts beta KL(old||new) from the surrogate: Schulman et al. 2017 (PPO), eq. 8."""

    coefficient: Coefficient = field(default_factory=Fixed)

    def __post_init__(self) -> None:
        validate(self)

    @property
    def target_kl(self) -> float | None:  # type: ignore[override]
        """Mean KL(old||new) that the coefficient aims at, nats."""
        return self.coefficient.target_kl

    @property
    def beta(self) -> float:  # type: ignore[override]
        """The coefficient in force."""
        return self.coefficient.beta

    def penalty(self, change: Change) -> Array:
        """Return beta KL(old||new), ``[*B]``."""
        return self.beta * change.kl

    def penalty_gradient(self, change: Change) -> Gradient:
        """Return beta times the derivative of KL(old||new)."""
        return tuple(self.beta * x for x in change.kl_gradient)

    def step_length(self, curvature: float) -> float:
        """Return 1 / beta, the maximum of g'x - beta/2 x'Fx along F^-1 g."""
        del curvature
        return 1.0 / self.beta

    def at_rate(self, share: float) -> Self:
        """Tell the coefficient."""
        return replace(self, coefficient=self.coefficient.at_rate(share))

    def adapt(self, change: Change) -> Self:
        """Update the coefficient by the KL of the whole update."""
        return replace(self, coefficient=self.coefficient.update(average(change.kl)))


@dataclass(frozen=True, kw_only=True)
class MirrorDescent(TrustRegion):
    """Subtracts KL(new||old) / t, with a step size t that falls linearly to 0 over the training.

    Tomar et al. 2020 ("Mirror Descent Policy Optimization"), eq. 9 and section 5: t = 1 / kl_coef at first, and several
    steps on one batch per update, each on the whole batch there. The direction is KL(new||old), not that of
    ``target_kl``; it aims at no KL. beta = 1 / t stays below 100 kl_coef, so that the last updates can still move.
    """

    kl_coef: Annotated[float, Bounds(1e-4, 1e4)] = 1.0
    progress_remaining: Fraction = 1.0

    def __post_init__(self) -> None:
        validate(self)

    @property
    def beta(self) -> float:  # type: ignore[override]
        """Coefficient in force, 1 / t."""
        return self.kl_coef / max(self.progress_remaining, 0.01)

    def penalty(self, change: Change) -> Array:
        """Return beta KL(new||old), ``[*B]``."""
        return self.beta * change.kl_reverse

    def step_length(self, curvature: float) -> float:
        """Return 1 / beta: to second order the two directions of KL agree."""
        del curvature
        return 1.0 / self.beta

    def scheduled(self, progress_remaining: float) -> Self:
        """Return the region with the step size of this update."""
        return replace(self, progress_remaining=progress_remaining)


@dataclass(frozen=True)
class ReferencePenalty(TrustRegion):
    """Subtracts reference_coef KL(new||reference), to stay near a fixed policy and learn without forgetting.

    RLHF's control (Ziegler et al. 2019, eq. 2) for control tasks. There KL is estimated from sampled actions, and the
    estimator decides which loss has the right gradient (:func:`klrl.kl.estimator_gradient`); here KL and its gradient
    are exact in every state of the batch. It limits no single update.
    """

    reference_coef: Positive = 0.1
    reads_reference = True

    def __post_init__(self) -> None:
        validate(self)

    def penalty(self, change: Change) -> Array:
        """Return reference_coef KL(new||reference), ``[*B]``."""
        return self.reference_coef * change.kl_reference


@dataclass(frozen=True)
class ReferenceForwardPenalty(TrustRegion):
    """Subtracts reference_forward_coef KL(reference||new), to keep probable what was probable under a fixed policy.

    The direction that forgetting follows: Shenfeld et al. 2025, "RL's Razor". Where :class:`ReferencePenalty` lets the
    policy drop an action of the reference at a finite price, here that price is unbounded. It limits no single update.
    """

    reference_forward_coef: Positive = 0.1
    reads_reference = True

    def __post_init__(self) -> None:
        validate(self)

    def penalty(self, change: Change) -> Array:
        """Return reference_forward_coef KL(reference||new), ``[*B]``."""
        return self.reference_forward_coef * change.kl_reference_forward

    def penalty_gradient(self, change: Change) -> Gradient:
        """Return reference_forward_coef times the derivative of KL(reference||new)."""
        return tuple(self.reference_forward_coef * x for x in change.kl_reference_forward_gradient)


@dataclass(frozen=True, kw_only=True)
class RatioVariancePenalty(TrustRegion):
    """Subtracts beta (r - 1)^2, where beta is the multiplier of the constraint Var[r] <= ratio_variance.

    Luo et al. 2026 ("Ratio-Variance Regularized Policy Optimization"), R2VPO. The variance under old, averaged over the
    states, is that of chi^2(new||old), which is twice the KL to second order. The loss has the samples' (r - 1)^2,
    whose gradient is that of chi^2 without bias; what the multiplier follows, and what is reported, is the exact value.
    The ascent on the dual is :class:`~klrl.trust_region.Dual`'s. It aims, it does not bound.
    """

    ratio_variance: Positive = 0.02
    beta: Annotated[float, Bounds(1e-4, 1e4)] = 1.0

    def __post_init__(self) -> None:
        validate(self)

    def penalty(self, change: Change) -> Array:
        """Return beta (r - 1)^2, ``[*B]``."""
        return self.beta * (change.ratio - 1.0) ** 2

    def penalty_gradient(self, change: Change) -> Gradient:
        """Return 2 beta (r - 1) r times the score."""
        weight = 2.0 * self.beta * (change.ratio - 1.0) * change.ratio
        return weighted(weight, change.new.score(change.action))

    def step_length(self, curvature: float) -> float:
        """Return 1 / (2 beta): to second order chi^2 is twice the KL."""
        del curvature
        return 0.5 / self.beta

    def report(self, change: Change) -> dict[str, float]:
        """Return the exact variance of the ratio, mean over the states, and its aim."""
        measured = average(change.ratio_variance)
        return {"drift/ratio_variance": measured, "drift/ratio_variance_target": self.ratio_variance}

    def adapt(self, change: Change) -> Self:
        """Take one step of the ascent, by the exact variance of the whole update."""
        ascent = Dual(target_kl=self.ratio_variance, beta=self.beta)
        return replace(self, beta=ascent.update(average(change.ratio_variance)).beta)
