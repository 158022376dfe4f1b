"""LIMIT: trust regions, coefficient schedules, natural gradient, line search."""

from typing import TYPE_CHECKING

from klrl.lazy import exports
from klrl.trust_region.all import All
from klrl.trust_region.bounds import KLConstraint, RatioDeviation, ReferenceConstraint
from klrl.trust_region.codec import region_from_json, region_to_json
from klrl.trust_region.coefficients import Adaptive, Coefficient, Dual, Fixed, Proportional
from klrl.trust_region.learning_rate import AdaptiveLearningRate
from klrl.trust_region.line_search import LineSearch, line_search
from klrl.trust_region.names import PARAMETERS, REGIONS, RegionSettings, region_from_name, with_region
from klrl.trust_region.penalties import KLPenalty, MirrorDescent, ReferencePenalty
from klrl.trust_region.projection import FrobeniusProjection, KLProjection, Projection, WassersteinProjection
from klrl.trust_region.region import DEFAULT_TARGET_KL, TrustRegion
from klrl.trust_region.surrogates import SPO, Clip, Rollback, TrulyPPO

if TYPE_CHECKING:
    from klrl.trust_region.change import Change
    from klrl.trust_region.natural_gradient import (
        ConjugateGradient,
        FisherVectorProduct,
        conjugate_gradient,
        fisher_diagonal,
    )

__all__ = [
    "DEFAULT_TARGET_KL",
    "PARAMETERS",
    "REGIONS",
    "SPO",
    "Adaptive",
    "AdaptiveLearningRate",
    "All",
    "Change",
    "Clip",
    "Coefficient",
    "ConjugateGradient",
    "Dual",
    "FisherVectorProduct",
    "Fixed",
    "FrobeniusProjection",
    "KLConstraint",
    "KLPenalty",
    "KLProjection",
    "LineSearch",
    "MirrorDescent",
    "Projection",
    "Proportional",
    "RatioDeviation",
    "ReferenceConstraint",
    "ReferencePenalty",
    "RegionSettings",
    "Rollback",
    "TrulyPPO",
    "TrustRegion",
    "WassersteinProjection",
    "conjugate_gradient",
    "fisher_diagonal",
    "line_search",
    "region_from_json",
    "region_from_name",
    "region_to_json",
    "with_region",
]
__getattr__, __dir__ = exports(
    __name__,
    {
        "Change": "change",
        "ConjugateGradient": "natural_gradient",
        "FisherVectorProduct": "natural_gradient",
        "conjugate_gradient": "natural_gradient",
        "fisher_diagonal": "natural_gradient",
    },
)
"""Names that need torch: a region can be chosen, checked and shown without it."""
