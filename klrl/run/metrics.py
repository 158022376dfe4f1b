"""What callbacks add to an update's metrics, as numbers and text that every place takes alike."""

from __future__ import annotations

from typing import Any, SupportsFloat

import numpy as np
import torch

from klrl.run.callback import Metrics
from klrl.text import plain

LONGEST = 1000
"""Characters of a metric's name, or of one that is text."""


def settle(metrics: dict[Any, Any], own: Metrics, who: str) -> None:
    """Make what was added numbers and text; what can be neither is left out, and what was there is there again.

    Numbers are integers, truths, fractions, 0-d arrays and tensors of any device and precision; they may be NaN.

    Args:
        metrics: an update's, after somebody had a hand in them; changed in place.
        own: what the update itself reports.
        who: had it, for messages.

    Raises:
        ValueError: something was refused; what, in one line.
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
    """What somebody else made of the update's own metrics, which are back where they were."""
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
    """The metric as it is written.

    Raises:
        ValueError: one line, naming it, its value and what is allowed.
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
    """As a float; ``None`` for what is no number, or one that no float can hold."""
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
    """A value and its type in a few words."""
    shape = getattr(value, "shape", ())
    what = f"of shape {tuple(shape)}" if shape else plain(repr(value), 80)
    return f"{what} ({type(value).__name__})"
