"""Checked dataclasses: a field's type names its allowed values, and one line says what was wrong.

>>> from dataclasses import dataclass
>>> @dataclass(frozen=True)
... class Schedule:
...     discount: Fraction = 0.99
...
...     def __post_init__(self):
...         validate(self)
>>> Schedule(discount=1.5)
Traceback (most recent call last):
...
ValueError: discount = 1.5; allowed: a number in [0, 1]
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, fields
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Bounds:
    """The interval a number must lie in; ``open_below`` excludes the lower end."""

    lower: float
    upper: float = math.inf
    open_below: bool = False

    def __contains__(self, x: float) -> bool:
        above = x > self.lower if self.open_below else x >= self.lower
        return above and x <= self.upper and _is_finite(x)

    def __str__(self) -> str:
        if self.upper < math.inf:
            return f"in {'(' if self.open_below else '['}{self.lower:g}, {self.upper:g}]"
        if self.lower == -math.inf:
            return "that is finite"
        return f"{'>' if self.open_below else '>='} {self.lower:g}"


Positive = Annotated[float, Bounds(0.0, open_below=True)]
NonNegative = Annotated[float, Bounds(0.0)]
Finite = Annotated[float, Bounds(-math.inf)]
Fraction = Annotated[float, Bounds(0.0, 1.0)]
PositiveInt = Annotated[int, Bounds(1)]
NonNegativeInt = Annotated[int, Bounds(0)]


def validate(instance: object) -> None:
    """Check every field of a dataclass instance against its type; call it from ``__post_init__``.

    Numbers must be finite and inside their :class:`Bounds`; a bool is not a number. Fields of other classes
    are not looked into: they validate themselves.

    Raises:
        ValueError: one line, ``field = value; allowed: ...``.
    """
    for name, hint in _hints(type(instance)).items():
        value = getattr(instance, name)
        if not _fits(value, hint):
            raise ValueError(f"{name} = {value!r}; allowed: {_describe(hint)}")


def _hints(cls: Any) -> dict[str, Any]:
    own = {field.name for field in fields(cls)}
    return {name: hint for name, hint in get_type_hints(cls, include_extras=True).items() if name in own}


def _fits(value: Any, hint: Any) -> bool:
    args = get_args(hint)
    match get_origin(hint):
        case origin if origin is Annotated:
            bounds = [b for b in args[1:] if isinstance(b, Bounds)]
            return _fits(value, args[0]) and all(value in b for b in bounds)
        case origin if origin in (Union, UnionType):
            return any(_fits(value, option) for option in args)
        case origin if origin is Literal:
            return value in args
        case origin if origin is tuple:
            return isinstance(value, tuple) and all(_fits(v, args[0]) for v in value)
    if hint in (int, float):
        number = isinstance(value, int) or (hint is float and isinstance(value, float))
        return number and not isinstance(value, bool) and _is_finite(value)
    return value is None if hint is type(None) else isinstance(value, hint)


def _is_finite(x: float) -> bool:
    """Also false for an integer that no float can hold."""
    return abs(x) <= sys.float_info.max


def _describe(hint: Any) -> str:
    args = get_args(hint)
    match get_origin(hint):
        case origin if origin is Annotated:
            bounds = [str(b) for b in args[1:] if isinstance(b, Bounds)]
            return " ".join([_describe(args[0]), *bounds])
        case origin if origin in (Union, UnionType):
            return " or ".join(_describe(option) for option in args)
        case origin if origin is Literal:
            return ", ".join(map(str, args))
        case origin if origin is tuple:
            return f"a tuple, each {_describe(args[0])}"
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
