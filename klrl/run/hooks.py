"""Checks of callbacks: those that cannot be called are refused, methods that would never be called are named."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from klrl.run.callback import Callback
from klrl.text import plain, warn_user

_HOOKS = {
    name: tuple(inspect.signature(hook).parameters)[1:] for name, hook in vars(Callback).items() if name[:3] == "on_"
}
"""Arguments of each hook."""
_ELSEWHERE = {
    "on_step": "on_update_end",
    "on_rollout_start": "on_update_end",
    "on_rollout_end": "on_update_start",
    "on_episode_end": "on_update_end",
    "on_training_begin": "on_training_start",
    "on_train_begin": "on_training_start",
    "on_exception": "on_error",
}
"""Hooks of other libraries, and the klrl hook that takes their place: klrl calls with whole rollouts and episodes."""
_USE = (
    "on_update_start(agent, batch) is called when a rollout has been collected, on_minibatch_end(agent, metrics) and "
    "on_epoch_end(agent, epoch) in its update, on_update_end(agent, batch, metrics) after it"
)


def check_callback(callback: object) -> None:
    """Refuse a value that is no callback, or that has a hook which cannot be called.

    Raises:
        ValueError: one line that names it, and the hook that was probably meant.
    """
    if not isinstance(callback, Callback):
        is_class = isinstance(callback, type) and issubclass(callback, Callback)
        meant = f"; did you mean {callback.__name__}()?" if is_class else ""  # type: ignore[attr-defined]
        said = plain(repr(callback), 200)
        raise ValueError(f"callback = {said}; allowed: a klrl.run.Callback or several, whose {_USE}{meant}")
    for name, arguments in _HOOKS.items():
        if (problem := _problem(getattr(callback, name), arguments)) is not None:
            allowed = f"def {name}({', '.join(('self', *arguments))})"
            raise ValueError(f"{type(callback).__name__}.{name} {problem}; allowed: {allowed}")


def name_lookalikes(callback: Callback) -> None:
    """Warn about methods that only look like hooks, or helpers with such names that their own class calls."""
    for name in _lookalikes(type(callback)):
        nearest = _nearest(f"on_{name.partition('on_')[2]}")
        warn_user(
            f"{type(callback).__name__}.{name} is not a hook: training never calls it; hooks are {', '.join(_HOOKS)}; "
            f"did you mean {nearest}({', '.join(_HOOKS[nearest])})?"
        )


def _lookalikes(cls: type) -> Iterator[str]:
    """Yield methods named like hooks, except for those of klrl's own classes."""
    for name in dir(cls):
        if name.lstrip("_").startswith("on_") and name not in _HOOKS and callable(getattr(cls, name)):
            owner = next(c for c in cls.__mro__ if name in vars(c))
            if owner.__module__.partition(".")[0] != "klrl":
                yield name


def _nearest(name: str) -> str:
    return _ELSEWHERE.get(name) or difflib.get_close_matches(name, _HOOKS, n=1, cutoff=0.0)[0]


def _problem(hook: Any, arguments: tuple[str, ...]) -> str | None:
    """Return why calling a hook would fail or do nothing, or ``None``."""
    if not callable(hook):
        return f"is {plain(repr(hook), 80)}"
    if any(is_kind(hook) for is_kind in (inspect.iscoroutinefunction, inspect.isgeneratorfunction)):
        return "is a coroutine or a generator, which does nothing when it is called"
    try:
        signature = inspect.signature(hook)
    except ValueError:  # it is written in C
        return None
    try:
        signature.bind(*arguments)
    except TypeError as error:
        return f"cannot be called with ({', '.join(arguments)}): {error}"
    return None


def ends(answer: object, who: str = "on_update_end") -> bool:
    """Return True if a hook answered false: Python's, numpy's or torch's, also as an array of one.

    Raises:
        ValueError: it is an array of several elements.
    """
    if isinstance(answer, torch.Tensor) and answer.dtype == torch.bool:
        answer = answer.cpu().numpy()
    if isinstance(answer, (np.ndarray, np.bool_)) and answer.dtype == np.bool_:
        if answer.size != 1:
            raise ValueError(f"{who} returned an array of {answer.size} elements; allowed: None, True or False")
        return not answer.item()
    return answer is False
