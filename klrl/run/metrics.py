"""Checks of what callbacks add to an update's metrics: numbers and text that every log can store."""

from __future__ import annotations

from typing import Any, SupportsFloat

import numpy as np
import torch

from klrl.run.callback import Metrics
from klrl.text import plain

LONGEST = 1000
"""Most characters of a metric's name, or of its text."""


def settle(metrics: dict[Any, Any], own: Metrics, who: str) -> None:
    """Convert additions to numbers and text, leave out others, and restore the update's own metrics.

    Numbers are integers, booleans, fractions, 0-d arrays and tensors of any device and precision; they may be NaN.

    Args:
        metrics: metrics of an update, after a callback may have changed them; changed in place.
        own: metrics that the update itself reports.
        who: name of the callback, for messages.

    Raises:
        ValueError: something was refused; one line says what.
    """
    problems = [_restored(metrics, own, who)]
    for name in [name for name in metrics if name not in own]:
        try:
            metrics[name] = _settled(name, metrics[name])
        except ValueError as error:
            del metrics[name]
            problems.append(f"{error} (from {who})")
    if found := [*filter(None, problems)]:
        raise ValueError("; ".join(found))


def _restored(metrics: dict[Any, Any], own: Metrics, who: str) -> str | None:
    """Restore the update's own metrics, and return what somebody changed in them."""
    changed = [name for name, x in own.items() if name not in metrics or _differs(metrics[name], x)]
    if not changed:
        return None
    name = changed[0]
    what = f"is {_shown(metrics[name])} now" if name in metrics else "was removed"
    added = {name: x for name, x in metrics.items() if name not in own}
    metrics.clear()
    metrics.update(own | added)
    return f"metric {name!r} {what} (from {who}); allowed: another name, for this one the update reports itself"


def _differs(value: object, own: float | str) -> bool:
    return value is not own and (type(value) is not type(own) or repr(value) != repr(own))


def _settled(name: object, value: Any) -> float | str:
    """Return the metric as it is written.

    Raises:
        ValueError: one line with its name, its value and what is allowed.
    """
    if not isinstance(name, str) or not name or not _is_a_line(name):
        raise ValueError(f"metric {_shown(name)}; allowed as a name: one line of text, as in 'eval/return'")
    if type(value) is float:
        return value
    if isinstance(value, str) and _is_a_line(value):
        return str.__str__(value)
    number = None if isinstance(value, str) else _number(value)
    if number is None:
        raise ValueError(f"metric {name!r} is {_shown(value)}; allowed: a number, or one line of text")
    return number


def _is_a_line(text: str) -> bool:
    return text.isprintable() and len(text) <= LONGEST


def _number(value: Any) -> float | None:
    """Return a float; ``None`` for other values, and for integers that no float can hold."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        real = not value.is_complex()
    else:
        real = not isinstance(value, (np.ndarray, np.generic)) or value.dtype.kind in "biuf"
    if not real or getattr(value, "ndim", 0) != 0 or not isinstance(value, SupportsFloat):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None


def _shown(value: object) -> str:
    """Describe a value and its type in a few words."""
    shape = getattr(value, "shape", ())
    what = f"of shape {tuple(shape)}" if shape else plain(repr(value), 80)
    return f"{what} ({type(value).__name__})"
