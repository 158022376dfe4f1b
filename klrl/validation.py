"""Checked dataclasses: a field's type determines its allowed values, and one line says what is wrong.

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
import re
import sys
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Bounds:
    """An interval of numbers; ``open_below`` excludes the lower end."""

    lower: float
    upper: float = math.inf
    open_below: bool = False
    forms: ClassVar[str] = ""
    """Other forms of a value, in words; where there are some, the interval itself judges values of any type."""

    def __contains__(self, x: float) -> bool:
        above = x > self.lower if self.open_below else x >= self.lower
        return above and x <= self.upper and _is_finite(x)

    def __str__(self) -> str:
        if self.upper < math.inf:
            return f"in {'(' if self.open_below else '['}{_digits(self.lower)}, {_digits(self.upper)}]"
        if self.lower == -math.inf:
            return "that is finite"
        return f"{'>' if self.open_below else '>='} {self.lower:g}"


def _digits(x: float) -> str:
    return short if float(short := f"{x:g}") == x else str(x)


@dataclass(frozen=True)
class Pattern:
    """A pattern that a text must match as a whole, and its description."""

    expression: str
    words: str

    def __contains__(self, x: str) -> bool:
        return re.fullmatch(self.expression, x) is not None

    def __str__(self) -> str:
        return self.words


Positive = Annotated[float, Bounds(0.0, open_below=True)]
NonNegative = Annotated[float, Bounds(0.0)]
Finite = Annotated[float, Bounds(-math.inf)]
Fraction = Annotated[float, Bounds(0.0, 1.0)]
PositiveInt = Annotated[int, Bounds(1)]
NonNegativeInt = Annotated[int, Bounds(0)]
Limit = Annotated[float, Bounds(0.0, 1e6, open_below=True)]
"""A limit in nats, of a ratio or of a distance: beyond 1e6 it limits nothing that float32 can measure."""
Weight = Annotated[float, Bounds(0.0, 1e6)]
"""A weight of a term in a sum: float32 has 7 digits, and a term 1e6 times another leaves nothing of it."""
InfoKey = Annotated[str, Pattern(r"[^\x00-\x1f\x7f,]+", "printable text without a comma")]
"""A key of infos; a comma would be a separator that was meant as one."""
PositiveWeight = Annotated[float, Bounds(0.0, 1e6, open_below=True)]


def validate(instance: object) -> None:
    """Check every field of a dataclass instance against its type; call it from ``__post_init__``.

    Numbers must be finite and inside their :class:`Bounds`; a bool is not a number. A list where a tuple is meant
    becomes one. Fields of other classes are not looked into: they validate themselves.

    Raises:
        ValueError: one line, ``field = value; allowed: ...``.
    """
    for name, hint in hints(type(instance)).items():
        value = getattr(instance, name)
        if not fits(value, hint):
            value, hint = _word(value, hint)
            more = f", or {forms}" if isinstance(value, str) and (forms := _forms(hint)) else ""
            raise ValueError(f"{name} = {value!r}; allowed: {describe(hint)}{more}")
        if isinstance(value, list):
            object.__setattr__(instance, name, tuple(value))


def hints(cls: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields by name, with their restrictions."""
    return dict(_hints(cls))


@lru_cache
def _hints(cls: type) -> dict[str, Any]:
    own = {field.name for field in fields(cls)}
    return {name: hint for name, hint in get_type_hints(cls, include_extras=True).items() if name in own}


def fits(value: Any, hint: Any) -> bool:
    """Tell whether a field of this type allows a value; a list is where a tuple is meant."""
    args = get_args(hint)
    match get_origin(hint):
        case origin if origin is Annotated:
            bounds = [b for b in args[1:] if isinstance(b, (Bounds, Pattern))]
            return (bool(_forms(hint)) or fits(value, args[0])) and all(value in b for b in bounds)
        case origin if origin in (Union, UnionType):
            return any(fits(value, option) for option in args)
        case origin if origin is Literal:
            return value in args
        case origin if origin is tuple:
            return isinstance(value, (tuple, list)) and all(fits(v, args[0]) for v in value)
    if hint in (int, float):
        number = isinstance(value, int) or (hint is float and isinstance(value, float))
        return number and not isinstance(value, bool) and _is_finite(value)
    return value is None if hint is type(None) else isinstance(value, hint)


def _word(value: Any, hint: Any) -> tuple[Any, Any]:
    """Return the first word of a tuple that its type does not allow, and its type; anything else as it is."""
    if get_origin(hint) is Annotated and get_origin(get_args(hint)[0]) is tuple:
        return _word(value, get_args(hint)[0])
    if get_origin(hint) is tuple and isinstance(value, (tuple, list)):
        of_one = get_args(hint)[0]
        found = _word(next((one for one in value if not fits(one, of_one)), None), of_one)
        if isinstance(found[0], str):
            return found
    return value, hint


def _forms(hint: Any) -> str:
    """Return the forms of other values than numbers that a type allows, in words."""
    found = (part.forms if isinstance(part, Bounds) else _forms(part) for part in get_args(hint))
    return next(filter(None, found), "")


def _is_finite(x: float) -> bool:
    """Return True for finite numbers; False also for an integer that no float can hold."""
    return abs(x) <= sys.float_info.max


def describe(hint: Any) -> str:
    """Describe the values that a field of this type allows."""
    args = get_args(hint)
    match get_origin(hint):
        case origin if origin is Annotated:
            if patterns := [str(p) for p in args[1:] if isinstance(p, Pattern)]:
                return " and ".join(patterns)
            kind = describe(float if _forms(hint) else args[0])
            return " ".join([kind, *(str(b) for b in args[1:] if isinstance(b, Bounds))])
        case origin if origin in (Union, UnionType):
            return " or ".join(describe(option) for option in args)
        case origin if origin is Literal:
            return ", ".join(map(str, args))
        case origin if origin is tuple:
            return f"a tuple, each {describe(args[0])}"
    names = {
        int: "an integer",
        float: "a number",
        bool: "true or false",
        str: "text",
        Path: "a path",
        type(None): "none",
    }
    return names.get(hint, getattr(hint, "__name__", str(hint)))
