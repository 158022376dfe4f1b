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
    """Yield the class of a region and the classes of what it holds."""
    if isinstance(x, (TrustRegion, Coefficient)):
        yield type(x)
        for field in fields(x):  # type: ignore[arg-type]
            yield from _made_of(getattr(x, field.name))


_CLASSES = {cls.__name__: cls for region in REGIONS.values() for cls in _made_of(region())} | {"All": All}
"""Classes that can be saved: those of all named regions and their coefficients, and ``All``."""


def region_to_json(region: Any) -> Any:
    """Return a region, with its coefficients' state, as plain JSON: ``{"class": name, field: value, ...}``.

    A class of the user's own is only named, because loading imports nothing.
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
    """Return the name of the first class in a saved region that is not klrl's, or ``None``."""
    if isinstance(data, list):
        return next(filter(None, map(own_class, data)), None)
    if not isinstance(data, dict):
        return None
    name = data.get("class")
    if not isinstance(name, str) or name not in _CLASSES:
        return str(name)
    return own_class([*data.values()])


def region_from_json(data: Any) -> Any:
    """Rebuild a region from :func:`region_to_json`'s output.

    Raises:
        ValueError: a class that is not one of klrl's, or neither a region nor a coefficient.
    """
    region = _from_json(data)
    if not isinstance(region, (TrustRegion, Coefficient)):
        raise ValueError(f"saved trust region {data!r}; allowed: a JSON object that names a class")
    return region


def _from_json(data: Any) -> Any:
    if not isinstance(data, dict):
        return data
    if (name := data.get("class")) not in _CLASSES:
        raise ValueError(f"saved trust region {name!r} is not klrl's; allowed: one given to load(..., trust_region=)")
    values = {k: _from_json(v) for k, v in data.items() if k != "class"}
    return All(*map(_from_json, values["regions"])) if name == "All" else _CLASSES[name](**values)
