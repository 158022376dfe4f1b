"""Trust regions as JSON: the configured one and, in saved state, the one in force with its coefficients' state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from klrl.trust_region.all import All
from klrl.trust_region.coefficients import Coefficient
from klrl.trust_region.names import REGIONS
from klrl.trust_region.region import TrustRegion


def _made_of(x: object) -> Iterator[type]:
    """The class of a region, and those of what it holds."""
    if isinstance(x, (TrustRegion, Coefficient)):
        yield type(x)
        for field in fields(x):  # type: ignore[arg-type]
            yield from _made_of(getattr(x, field.name))


_CLASSES = {cls.__name__: cls for region in REGIONS.values() for cls in _made_of(region())} | {"All": All}
"""What can be saved: every class that a name stands for, alone or joined."""


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
