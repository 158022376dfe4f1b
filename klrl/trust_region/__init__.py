"""LIMIT: trust regions, coefficient schedules, natural gradient, line search.

Modules of regions and schedules say themselves, in ``__all__``, what this package exports of them.
"""

from typing import TYPE_CHECKING

from klrl.lazy import exports
from klrl.trust_region import bounds, coefficients, learning_rate, penalties, projection, surrogates
from klrl.trust_region.all import All
from klrl.trust_region.bounds import *
from klrl.trust_region.codec import region_from_json, region_to_json
from klrl.trust_region.coefficients import *
from klrl.trust_region.learning_rate import *
from klrl.trust_region.line_search import LineSearch, line_search
from klrl.trust_region.names import PARAMETERS, REGIONS, RegionSettings, region_from_name, with_region
from klrl.trust_region.penalties import *
from klrl.trust_region.projection import *
from klrl.trust_region.region import DEFAULT_TARGET_KL, TrustRegion
from klrl.trust_region.surrogates import *

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
    "All",
    "Change",
    "ConjugateGradient",
    "FisherVectorProduct",
    "LineSearch",
    "RegionSettings",
    "TrustRegion",
    "conjugate_gradient",
    "fisher_diagonal",
    "line_search",
    "region_from_json",
    "region_from_name",
    "region_to_json",
    "with_region",
]
__all__ += bounds.__all__
__all__ += coefficients.__all__
__all__ += learning_rate.__all__
__all__ += penalties.__all__
__all__ += projection.__all__
__all__ += surrogates.__all__
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
