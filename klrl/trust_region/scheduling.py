"""Settings of a region that are scheduled: their values of one update, put into the region in force."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from klrl.trust_region.all import All
from klrl.trust_region.coefficients import Adaptive, Coefficient, Dual, Fixed, Proportional
from klrl.trust_region.region import TrustRegion


def takes(region: TrustRegion, name: str) -> bool:
    """Tell whether a region, or a member of it, takes other values of a setting while it is in force."""
    if isinstance(region, All):
        return any(takes(member, name) for member in region.regions)
    coefficients = (x for f in fields(region) if isinstance(x := getattr(region, f.name), Coefficient))
    return any(f.name == name for f in fields(region)) or any(_changes(x, {name: 1.0}) for x in coefficients)


def with_values(region: TrustRegion, values: Mapping[str, float]) -> TrustRegion:
    """Return a region with other values of these settings, where it or a member of it reads them.

    What a region has learned, such as the coefficient of an adaptive penalty, stays.
    """
    if not values:
        return region
    if isinstance(region, All):
        return All(*(with_values(member, values) for member in region.regions))
    changes: dict[str, Any] = {f.name: values[f.name] for f in fields(region) if f.name in values}
    for field in fields(region):
        found = getattr(region, field.name)
        if isinstance(found, Coefficient) and (mine := _changes(found, values)):
            changes[field.name] = replace(found, **mine)  # type: ignore[type-var]  # klrl's are dataclasses
    return replace(region, **changes) if changes else region


def _changes(coefficient: Coefficient, values: Mapping[str, float]) -> dict[str, float]:
    """Return the changes of a coefficient: its aim, and a beta that does not move by itself."""
    changes = {}
    if "target_kl" in values and isinstance(coefficient, (Adaptive, Proportional, Dual)):
        changes["target_kl"] = values["target_kl"]
    if "kl_coef" in values and type(coefficient) is Fixed:
        changes["beta"] = values["kl_coef"]
    return changes
