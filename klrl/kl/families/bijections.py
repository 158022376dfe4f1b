"""Maps of ``torch.distributions`` that call themselves bijections: whether they are, on what they are given."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints


def are_bijections(transforms: Iterable[td.Transform], support: Any) -> bool:
    """Tell whether maps, one after the other from a support on, send different values to different ones.

    torch calls a power a bijection, as it is for positive numbers, and a multiplication by zero, too.
    """
    for transform in _one_by_one(transforms):
        if not transform.bijective or not _holds(transform.domain, support) or _collapses(transform):
            return False
        support = transform.codomain
    return True


def _one_by_one(transforms: Iterable[td.Transform]) -> Iterator[td.Transform]:
    """Yield maps that are no chains."""
    for transform in transforms:
        if isinstance(transform, td.ComposeTransform):
            yield from _one_by_one(transform.parts)
        else:
            yield transform


def _collapses(transform: td.Transform) -> bool:
    """Tell whether a map, or a part of it, sends everything to one point."""
    match transform:
        case td.AffineTransform(scale=factor) | td.PowerTransform(exponent=factor):
            return bool((torch.as_tensor(factor) == 0.0).any())
        case td.IndependentTransform(base_transform=inner):
            return _collapses(inner)
        case td.CatTransform(transforms=parts) | td.StackTransform(transforms=parts):
            return any(map(_collapses, parts))
    return False


def _holds(domain: Any, support: Any) -> bool:
    """Tell whether a set holds another: intervals are compared by their ends, other sets have to be of one kind."""
    domain, support = _of_elements(domain), _of_elements(support)
    for joined in (domain, support):
        if isinstance(joined, (constraints.cat, constraints.stack)):
            parts = [(x, support) if joined is domain else (domain, x) for x in joined.cseq]
            return all(_holds(*pair) for pair in parts)
    (low, high), (least, largest) = _ends(domain), _ends(support)
    inside = bool(((low <= least) & (largest <= high)).all())
    return inside if {type(domain), type(support)} <= _INTERVALS else type(domain) is type(support) and inside


_INTERVALS = {
    type(x)
    for x in (
        constraints.real, constraints.positive, constraints.nonnegative, constraints.unit_interval,
        constraints.less_than(0.0), constraints.half_open_interval(0.0, 1.0),
    )
}  # fmt: skip


def _of_elements(x: Any) -> Any:
    while isinstance(x, constraints.independent):
        x = x.base_constraint
    return x


def _ends(x: Any) -> tuple[Tensor, Tensor]:
    """Return the least and the largest number of an interval."""
    ends = getattr(x, "lower_bound", -math.inf), getattr(x, "upper_bound", math.inf)
    low, high = (torch.as_tensor(end) for end in ends)
    return low, high
