"""Regions in numbers, for the kernel: a surrogate of the ratio that it knows, and a multiple of KL(old||new)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from klrl.trust_region.all import All
from klrl.trust_region.bounds import (
    CVaRConstraint,
    KLConstraint,
    MaxConstraint,
    NextStateConstraint,
    QuantileConstraint,
    RatioDeviation,
    ReferenceConstraint,
    ReferenceForwardConstraint,
)
from klrl.trust_region.learning_rate import AdaptiveLearningRate
from klrl.trust_region.penalties import KLPenalty
from klrl.trust_region.region import TrustRegion
from klrl.trust_region.surrogates import SPO, Clip, Rollback

_PLAIN = (
    TrustRegion, KLConstraint, NextStateConstraint, QuantileConstraint, CVaRConstraint, MaxConstraint, RatioDeviation,
    ReferenceConstraint, ReferenceForwardConstraint, AdaptiveLearningRate,
)  # fmt: skip
"""Regions that leave surrogate and penalty as they are."""


@dataclass(frozen=True)
class Arithmetic:
    """Surrogate by name, with its numbers, and the coefficient of KL(old||new)."""

    surrogate: str = "plain"
    epsilon: float = 0.0
    slope: float = 0.0
    beta: float = 0.0


def arithmetic(region: TrustRegion) -> Arithmetic | None:
    """Return a region's surrogate and penalty in numbers, or ``None``.

    A class derived from one of these is another region: what it redefines is nobody's guess.
    """
    found = Arithmetic()
    for member in region.regions if type(region) is All else [region]:
        if type(member) is All:
            return None
        if type(member) is Clip:
            found = replace(found, surrogate="clip", epsilon=member.clip_range)
        elif type(member) is SPO:
            found = replace(found, surrogate="spo", epsilon=member.clip_range)
        elif type(member) is Rollback:
            found = replace(found, surrogate="rollback", epsilon=member.clip_range, slope=member.rollback_slope)
        elif type(member) is KLPenalty and member.beta >= 0.0:
            found = replace(found, beta=found.beta + member.beta)
        elif type(member) not in _PLAIN:
            return None
    return found
