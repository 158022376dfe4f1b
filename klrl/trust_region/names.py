"""Trust regions by name (command line, config) and as JSON (saved state)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from klrl.text import nearest
from klrl.trust_region.all import All
from klrl.trust_region.bounds import KLConstraint, RatioDeviation, ReferenceConstraint
from klrl.trust_region.coefficients import Adaptive, Coefficient, Dual, Fixed, Proportional
from klrl.trust_region.gains import SPO, Clip, Rollback, TrulyPPO
from klrl.trust_region.learning_rate import AdaptiveLearningRate
from klrl.trust_region.penalties import KLPenalty, MirrorDescent, ReferencePenalty
from klrl.trust_region.projection import FrobeniusProjection, KLProjection, WassersteinProjection
from klrl.trust_region.region import DEFAULT_TARGET_KL, TrustRegion


def _early_stop(target_kl: float = DEFAULT_TARGET_KL) -> TrustRegion:
    return KLConstraint(target_kl, on_exit="stop")


def _constraint(target_kl: float = DEFAULT_TARGET_KL) -> TrustRegion:
    return KLConstraint(target_kl)


def _fixed_penalty(kl_coef: float = 1.0) -> TrustRegion:
    return KLPenalty(Fixed(kl_coef))


def _adaptive_penalty(target_kl: float = DEFAULT_TARGET_KL, kl_coef: float = 1.0) -> TrustRegion:
    return KLPenalty(Adaptive(target_kl=target_kl, beta=kl_coef))


def _proportional_penalty(target_kl: float = DEFAULT_TARGET_KL, kl_coef: float = 1.0) -> TrustRegion:
    return KLPenalty(Proportional(target_kl=target_kl, beta=kl_coef))


def _dual_penalty(target_kl: float = DEFAULT_TARGET_KL, kl_coef: float = 1.0) -> TrustRegion:
    return KLPenalty(Dual(target_kl=target_kl, beta=kl_coef))


def _adaptive_lr(target_kl: float = DEFAULT_TARGET_KL) -> TrustRegion:
    return AdaptiveLearningRate(target_kl=target_kl)


def _mdpo(kl_coef: float = 1.0) -> TrustRegion:
    return MirrorDescent(kl_coef=kl_coef)


REGIONS: dict[str, Callable[..., TrustRegion]] = {
    "none": TrustRegion,
    "clip": Clip,
    "spo": SPO,
    "rollback": Rollback,
    "truly-ppo": TrulyPPO,
    "projection": KLProjection,
    "w2-projection": WassersteinProjection,
    "frobenius-projection": FrobeniusProjection,
    "early-stop": _early_stop,
    "constraint": _constraint,
    "espo": RatioDeviation,
    "fixed-penalty": _fixed_penalty,
    "adaptive-penalty": _adaptive_penalty,
    "proportional-penalty": _proportional_penalty,
    "dual-penalty": _dual_penalty,
    "mdpo": _mdpo,
    "adaptive-lr": _adaptive_lr,
    "reference-penalty": ReferencePenalty,
    "reference-constraint": ReferenceConstraint,
}
"""What ``--trust-region`` accepts; a function's parameters are the settings it reads."""

PARAMETERS = tuple(dict.fromkeys(name for region in REGIONS.values() for name in inspect.signature(region).parameters))
"""Every setting that some region reads; each is a field of the agents' config."""


def parameters_of(name: str) -> frozenset[str]:
    """The settings that the region ``A`` or ``A+B`` reads.

    Raises:
        ValueError: an unknown name.
    """
    parts = name.split("+")
    for part in parts:
        if part not in REGIONS:
            hint = nearest(part, REGIONS)
            raise ValueError(f"trust_region = {name!r}; allowed: {', '.join(REGIONS)}, or several joined by '+'{hint}")
    return frozenset().union(*(inspect.signature(REGIONS[part]).parameters for part in parts))


def region_from_name(name: str, **settings: float) -> TrustRegion:
    """Build ``A`` or ``A+B``; each region takes the settings it reads and defaults for the rest.

    Raises:
        ValueError: an unknown name, or a setting that none of the regions reads.
    """
    known = parameters_of(name)
    for setting, value in settings.items():
        if setting not in known:
            readers = ", ".join(region for region in REGIONS if setting in parameters_of(region))
            raise ValueError(f"{setting} = {value}; allowed: only with a trust region that reads it ({readers})")
    parts = [
        REGIONS[part](**{k: v for k, v in settings.items() if k in parameters_of(part)}) for part in name.split("+")
    ]
    return parts[0] if len(parts) == 1 else All(*parts)


_SAVED = (
    TrustRegion,
    All,
    KLConstraint,
    RatioDeviation,
    ReferenceConstraint,
    KLPenalty,
    MirrorDescent,
    ReferencePenalty,
    AdaptiveLearningRate,
    KLProjection,
    WassersteinProjection,
    FrobeniusProjection,
    Clip,
    SPO,
    Rollback,
    TrulyPPO,
    Fixed,
    Adaptive,
    Proportional,
    Dual,
)
_CLASSES = {cls.__name__: cls for cls in _SAVED}


def region_to_json(region: Any) -> Any:
    """A region, with its coefficients' state, as plain JSON: ``{"class": name, field: value, ...}``.

    A class of the user's own is only named: nothing here could import it again.
    """
    if isinstance(region, tuple):
        return [region_to_json(r) for r in region]
    if not isinstance(region, (TrustRegion, Coefficient)):
        return region
    if type(region) not in _CLASSES.values():
        return {"class": type(region).__name__, "repr": repr(region)}
    values = {f.name: region_to_json(getattr(region, f.name)) for f in fields(region)}  # type: ignore[arg-type]
    return {"class": type(region).__name__} | values


def own_class(data: Any) -> str | None:
    """The name of the first class in a saved region that is not klrl's, if there is one."""
    if isinstance(data, list):
        return next(filter(None, map(own_class, data)), None)
    if not isinstance(data, dict):
        return None
    name = data.get("class")
    if not isinstance(name, str) or name not in _CLASSES:
        return str(name)
    return own_class([*data.values()])


def region_from_json(data: Any) -> Any:
    """The inverse of :func:`region_to_json`.

    Raises:
        ValueError: a class that is not one of klrl's, or neither a region nor a coefficient.
    """
    region = _from_json(data)
    if not isinstance(region, (TrustRegion, Coefficient)):
        raise ValueError(f"saved trust region {data!r}; allowed: one in words of JSON")
    return region


def _from_json(data: Any) -> Any:
    if not isinstance(data, dict):
        return data
    if (name := data.get("class")) not in _CLASSES:
        raise ValueError(f"saved trust region {name!r} is not klrl's; allowed: to give it to load(..., trust_region=)")
    values = {k: _from_json(v) for k, v in data.items() if k != "class"}
    return All(*map(_from_json, values["regions"])) if name == "All" else _CLASSES[name](**values)
