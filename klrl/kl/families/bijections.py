"""Transforms of ``torch.distributions``: whether they map a support one to one, as their class alone does not say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import distributions as td
from torch.distributions import constraints, transforms


def one_to_one(base: td.Distribution, maps: Sequence[td.Transform]) -> bool:
    """Return True if the maps, one after the other, are one to one on what the base distribution can draw.

    Torch calls x^2 a bijection whatever it is given, and x -> 0 x one as well.
    """
    try:
        support: Any = base.support
    except NotImplementedError:
        return False
    for part in _parts(maps):
        if not part.bijective or _constant(part) or not _within(support, part.domain):
            return False
        support = part.codomain
    return True


def _parts(maps: Sequence[td.Transform]) -> Iterator[td.Transform]:
    for part in maps:
        match part:
            case transforms.ComposeTransform():
                yield from _parts(part.parts)
            case transforms.IndependentTransform():
                yield from _parts([part.base_transform])
            case _:
                yield part


def _constant(part: td.Transform) -> bool:
    match part:
        case transforms.AffineTransform():
            return bool((torch.as_tensor(part.scale) == 0).any())
        case transforms.PowerTransform():
            return bool((part.exponent == 0).any())
        case transforms.CatTransform() | transforms.StackTransform():
            return any(_constant(x) for x in _parts(part.transforms))
    return False


def _within(support: Any, domain: Any) -> bool:
    """Return True if a support lies in a domain: by the ends of intervals, else by the kind of set."""
    inner, outer = _elements(support), _elements(domain)
    if isinstance(outer, (constraints.cat, constraints.stack)):
        parts = inner.cseq if type(inner) is type(outer) else [inner] * len(outer.cseq)
        return len(parts) == len(outer.cseq) and all(map(_within, parts, outer.cseq))
    if (ends := _ends(outer)) is None:
        return type(inner) is type(outer)
    if ends == (-math.inf, math.inf):
        return True
    given = _ends(inner)
    return given is not None and ends[0] <= given[0] and given[1] <= ends[1]


def _elements(constraint: Any) -> Any:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def _ends(constraint: Any) -> tuple[float, float] | None:
    """Return the ends of an interval, whether they belong to it or not; ``None`` for another set."""
    if isinstance(constraint, type(constraints.real)):
        return -math.inf, math.inf
    low, high = (getattr(constraint, name, None) for name in ("lower_bound", "upper_bound"))
    if low is None and high is None:
        return None
    least = -math.inf if low is None else float(torch.as_tensor(low).min())
    return least, math.inf if high is None else float(torch.as_tensor(high).max())
