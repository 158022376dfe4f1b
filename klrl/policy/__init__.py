"""ACT: distribution records, networks by space, observation normaliser."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
_MODULES = {"Encoding": "observations", "Normalizer": "normalizer"}
"""The module of a name that is not among the records."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"klrl.policy.{_MODULES.get(name, 'distributions')}"), name)
    raise AttributeError(f"module 'klrl.policy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
