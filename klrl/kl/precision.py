"""``torch.distributions`` objects with the same parameters in float64."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from torch import distributions as td
from torch.distributions.utils import lazy_property

_INVERSE: type[td.Transform] = type(td.ExpTransform().inv)


def in_float64(distribution: td.Distribution) -> Any:
    """Return the same distribution with its numbers in float64; the object itself stays as it is.

    Numbers that it has computed from its parameters, in their precision, are forgotten and computed again.
    """
    return _wide(distribution)


def _wide(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.double() if x.is_floating_point() else x
    if type(x) in (list, tuple):
        return type(x)(map(_wide, x))
    if isinstance(x, _INVERSE):
        return _wide(x.inv).inv
    if not isinstance(x, (td.Distribution, td.Transform)):
        return x
    other = copy.copy(x)
    for name, value in vars(x).items():
        if _is_derived(x, name):
            del other.__dict__[name]
        else:  # a transform makes its inverse when it is asked for
            other.__dict__[name] = None if isinstance(x, td.Transform) and name == "_inv" else _wide(value)
    return other


def _is_derived(x: td.Distribution | td.Transform, name: str) -> bool:
    """Tell whether an attribute was computed when it was first asked for."""
    if not isinstance(getattr(type(x), name, None), lazy_property):
        return False
    given = vars(x).get("_param", None)
    return given is not vars(x)[name] if given is not None else name not in getattr(x, "arg_constraints", {})
