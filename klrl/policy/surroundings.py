"""What a program may have switched on in torch for its own purposes, and klrl computes without.

``torch.inference_mode`` makes tensors that never get a gradient, and nothing can turn it off for them afterwards: what
was made in it could not learn, without a word. ``torch.autocast`` rounds matrix products to half the digits, and every
KL is made of these. So klrl's doors close both behind them. The default dtype and device need no door: no tensor here
is made without its own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
_DEVICES = ("cpu", "cuda")


def undisturbed(function: Callable[P, R]) -> Callable[P, R]:
    """A function outside of ``torch.inference_mode`` and ``torch.autocast``, wherever it is called."""

    @wraps(function)
    def outside(*args: P.args, **kwargs: P.kwargs) -> R:
        if not (torch.is_inference_mode_enabled() or any(map(torch.is_autocast_enabled, _DEVICES))):
            return function(*args, **kwargs)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            for device in _DEVICES:
                stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return outside


def ordinary(x: Tensor) -> Tensor:
    """The same numbers as a tensor that derivatives can be taken by; a copy where it was made in inference mode."""
    return x.clone() if x.is_inference() else x
