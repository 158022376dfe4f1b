"""Torch modes of the surrounding program, which klrl's entry points switch off.

``torch.inference_mode`` makes tensors that can never get a gradient: networks made in it would silently not learn.
``torch.autocast`` rounds matrix products to half the digits, and every KL is computed from these. The default dtype and
device need no such care, because every tensor here is made with its own.
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
    """Run a function outside of ``torch.inference_mode`` and ``torch.autocast``, wherever it is called."""

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
    """Return the same numbers as a tensor for autograd; a copy if it was made in inference mode."""
    return x.clone() if x.is_inference() else x
