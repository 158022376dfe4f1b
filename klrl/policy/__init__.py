"""ACT: distribution records, networks by space, observation normaliser."""

from typing import TYPE_CHECKING

from klrl.lazy import exports

if TYPE_CHECKING:
    from klrl.policy.distributions import (
        Bernoulli,
        Beta,
        Categorical,
        DiagGaussian,
        Distribution,
        FullGaussian,
        GaussianMixture,
        MultiCategorical,
        NoClosedForm,
        SquashedGaussian,
        as_record,
        stack_records,
    )
    from klrl.policy.normalizer import Normalizer
    from klrl.policy.observations import Encoding

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "DiagGaussian",
    "Distribution",
    "Encoding",
    "FullGaussian",
    "GaussianMixture",
    "MultiCategorical",
    "NoClosedForm",
    "Normalizer",
    "SquashedGaussian",
    "as_record",
    "stack_records",
]
_MODULES = dict.fromkeys(__all__, "distributions") | {"Encoding": "observations", "Normalizer": "normalizer"}
"""Modules by the names that they have."""

__getattr__, __dir__ = exports(__name__, _MODULES)
