"""LIMIT: trust regions, coefficient schedules, natural gradient, line search."""

from klrl.trust_region.all import All
from klrl.trust_region.change import Change
from klrl.trust_region.coefficients import Adaptive, Coefficient, Dual, Fixed, Proportional
from klrl.trust_region.gains import SPO, Clip, Rollback, TrulyPPO
from klrl.trust_region.line_search import LineSearch, line_search
from klrl.trust_region.names import PARAMETERS, REGIONS, region_from_json, region_from_name, region_to_json
from klrl.trust_region.natural_gradient import (
    ConjugateGradient,
    FisherVectorProduct,
    conjugate_gradient,
    fisher_diagonal,
)
from klrl.trust_region.regions import (
    DEFAULT_TARGET_KL,
    AdaptiveLearningRate,
    KLConstraint,
    KLPenalty,
    RatioDeviation,
    TrustRegion,
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
    "KLConstraint",
    "KLPenalty",
    "LineSearch",
    "Proportional",
    "RatioDeviation",
    "Rollback",
    "TrulyPPO",
    "TrustRegion",
    "conjugate_gradient",
    "fisher_diagonal",
    "line_search",
    "region_from_json",
    "region_from_name",
    "region_to_json",
]
