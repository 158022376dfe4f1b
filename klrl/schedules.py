"""Settings that may change over a training: a number, a schedule in words, or a function of the progress remaining.

``progress_remaining``, p, falls from 1 to 0 over a training, as in Stable-Baselines3.

>>> during("linear:3e-4:0", 0.25), during("piecewise:0.2:0.5:0.1", 0.5), during(lambda p: 0.1 + p, 0.5)
(7.5e-05, 0.1, 0.6)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from klrl.text import plain
from klrl.validation import Bounds, hints

if TYPE_CHECKING:
    Value = float | str | Callable[[float], float]
else:
    Value = float | str  # what a command line can say
FORMS = "constant:X, linear:FROM:TO, cosine:FROM:TO, piecewise:X:DONE:X:... (DONE: share of the training)"


@dataclass(frozen=True)
class During(Bounds):
    """An interval of numbers, all that a schedule or function may take; a schedule may end on an open end."""

    forms: ClassVar[str] = FORMS

    def __contains__(self, value: object) -> bool:
        if isinstance(value, str):
            schedule = _read(value)
            return schedule is not None and self._holds(schedule)
        if callable(value):
            return True  # judged when it is asked
        return isinstance(value, (int, float)) and not isinstance(value, bool) and super().__contains__(value)

    def _holds(self, schedule: Schedule) -> bool:
        first, *others = schedule.values
        inside = super().__contains__
        if schedule.ends:
            return inside(first) and all(self.lower <= x <= self.upper for x in others)
        return all(map(inside, schedule.values))


@dataclass(frozen=True)
class Schedule:
    """A schedule in words.

    constant: X. linear: p FROM + (1 - p) TO. cosine: TO + (FROM - TO) (1 + cos(pi (1 - p))) / 2. piecewise: the last X
    whose share of the training is done.
    """

    kind: str
    values: tuple[float, ...]
    shares: tuple[float, ...] = ()
    """Shares of the training after which the second and later values hold."""

    @property
    def ends(self) -> bool:
        """True if the second value is where it ends, which no update reaches."""
        return self.kind in ("linear", "cosine")

    def __call__(self, progress_remaining: float) -> float:
        """Return the value at this share of the training still to come."""
        p, (first, *others) = progress_remaining, self.values
        match self.kind:
            case "linear":
                return p * first + (1.0 - p) * others[0]
            case "cosine":
                return others[0] + (first - others[0]) * 0.5 * (1.0 + math.cos(math.pi * (1.0 - p)))
        return self.values[sum(1.0 - p >= share for share in self.shares)]


@lru_cache
def _read(word: str) -> Schedule | None:
    """Return the schedule that a word describes, or ``None``."""
    kind, *parts = word.split(":")
    try:
        numbers = tuple(map(float, parts))
    except ValueError:
        return None
    if not all(map(math.isfinite, numbers)):
        return None
    if len(numbers) == {"constant": 1, "linear": 2, "cosine": 2}.get(kind):
        return Schedule(kind, numbers)
    shares = numbers[1::2]
    rising = all(a < b for a, b in pairwise((0.0, *shares, 1.0)))
    return Schedule(kind, numbers[::2], shares) if kind == "piecewise" and len(numbers) % 2 and rising else None


def is_scheduled(value: object) -> bool:
    """Tell whether a setting is a schedule or a function, and not one number."""
    return isinstance(value, str) or callable(value)


def during(value: Value, progress_remaining: float) -> float:
    """Return a setting's number at this share of the training still to come."""
    if isinstance(value, str):
        schedule = _read(value)
        if schedule is None:
            raise ValueError(f"schedule = {value!r}; allowed: {FORMS}")
        return schedule(progress_remaining)
    return float(value(progress_remaining)) if callable(value) else value


def schedulable(cls: Any) -> Mapping[str, During]:
    """Return the fields of a dataclass that may be scheduled, with the range of each."""
    return _ranges(cls)


@lru_cache
def _ranges(cls: type) -> Mapping[str, During]:
    found = {name: _range(hint) for name, hint in hints(cls).items()}
    return {name: bounds for name, bounds in found.items() if bounds is not None}


def _range(hint: Any) -> During | None:
    """Return the range in a type, or in one of its options."""
    return next((x for part in get_args(hint) if (x := part if isinstance(part, During) else _range(part))), None)


def scheduled(settings: Any) -> dict[str, Value]:
    """Return the settings of a dataclass that are schedules or functions, by name."""
    values = ((name, getattr(settings, name)) for name in schedulable(type(settings)))
    return {name: value for name, value in values if is_scheduled(value)}


def values_at(settings: Any, progress_remaining: float) -> dict[str, float]:
    """Return the numbers of a dataclass's settings that may be scheduled, unless they are ``None``.

    Raises:
        ValueError: a function gives a number that its setting does not allow.
    """
    found = {}
    for name, bounds in schedulable(type(settings)).items():
        if (value := getattr(settings, name)) is not None:
            found[name] = now = during(value, progress_remaining)
            if callable(value) and now not in Bounds(bounds.lower, bounds.upper, bounds.open_below):
                said = f"{name} = {now!r} from {function_name(value)} at progress_remaining = {progress_remaining:g}"
                raise ValueError(f"{said}; allowed: a number {bounds}")
    return found


def to_json(value: Any) -> Any:
    """Return a setting as plain JSON; a function is only named, because loading imports nothing."""
    return {"function": function_name(value)} if callable(value) else value


def functions_in(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the saved settings that only name a function, with the names."""
    return {k: str(v["function"]) for k, v in settings.items() if isinstance(v, dict) and v.keys() == {"function"}}


def refuse_functions(settings: Mapping[str, Any]) -> None:
    """Refuse saved settings that name a function, which nobody has given again.

    Raises:
        ValueError: naming all of them.
    """
    if named := functions_in(settings):
        what = plain(", ".join(f"{name} = {function}" for name, function in named.items()), 200)
        scheduled = ", ".join(f"{name!r}: ..." for name in named if name != "network")
        again = (["network=..."] if "network" in named else []) + ([f"schedules={{{scheduled}}}"] if scheduled else [])
        raise ValueError(f"{what}: functions are not saved; allowed: load(..., {', '.join(again)})")


def function_name(function: Any) -> str:
    """Return ``MODULE:NAME`` of a function, or of the class of another thing that can be called."""
    kind = type(function)
    module = getattr(function, "__module__", kind.__module__)
    return f"{module}:{getattr(function, '__qualname__', kind.__qualname__)}"
