"""Actions a = tanh(u) that remember u: in float32, a is 1 from u = 9.1 on.

What is computed from such an array, an index or a copy for example, is an ordinary one.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klrl.policy.arrays import Array, exp, is_numpy, log1p, tensor


class _Tensor(Tensor):
    before_tanh: Tensor | None = None
    version: int | None = None
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]


class _Numpy(np.ndarray):
    before_tanh: np.ndarray | None = None

    def __array_wrap__(self, array: np.ndarray, *_: Any) -> Any:
        return np.asarray(array)[()]


def remembering(action: Array, u: Array) -> Array:
    """Return the actions, on the same memory, with what they are the tanh of; an array that cannot be written to."""
    kept: Any
    if is_numpy(action):
        kept = action.view(_Numpy)
        kept.flags.writeable = False
    else:
        kept = action.as_subclass(_Tensor)
        kept.version = _version(kept)
    kept.before_tanh = u
    return kept


def before_tanh(action: Array) -> Array | None:
    """Return what actions are the tanh of, if they remember it and have not been written to."""
    if isinstance(action, _Numpy) or (isinstance(action, _Tensor) and action.version == _version(action)):
        return action.before_tanh
    return None


def on_tensors(action: Array) -> Tensor:
    """Return actions as tensors, which remember what they did."""
    u = before_tanh(action)
    return tensor(action) if u is None else remembering(tensor(np.asarray(action)), tensor(u))


def matching(action: Tensor, u: Tensor | None) -> Tensor | None:
    """Return u if actions are its tanh, up to rounding."""
    return u if u is not None and u.shape == action.shape and torch.allclose(u.tanh(), action, atol=1e-5) else None


def _version(x: Tensor) -> int | None:
    """Return the number of times that a tensor was written to."""
    return None if x.is_inference() else x._version


def log_slope(u: Array) -> Array:
    """log (1 - tanh(u)^2) = log 4 - 2 |u| - 2 log(1 + e^{-2 |u|})."""
    size = abs(u)
    return math.log(4.0) - 2.0 * size - 2.0 * log1p(exp(-2.0 * size))
