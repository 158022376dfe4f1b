"""Operations that let a formula read the same for tensors and numpy arrays.

On a minibatch, an operation's cost is overhead, not arithmetic, and numpy's overhead is smaller. So the formulas of an
update take both: arrays in, arrays out; tensors in, tensors out, with their graph. Both kinds share the operators,
``@``, ``.T``, ``.sum``, ``.mean``, ``.argmax`` and ``.reshape``; the rest is here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import ThreadpoolController
from typing_extensions import TypeVar

if TYPE_CHECKING:
    from torch import Tensor

_blas = ThreadpoolController().select(user_api="blas")
_BLAS = _blas.select(filepath=[pool["filepath"] for pool in _blas.info() if "numpy" in pool["filepath"]])
"""BLAS library of numpy; torch may share another one."""
_LIMITED = Lock()
_SHORT = 16
"""Most choices over which torch's softmax, on the CPU, costs more than a copy in which they are the first dimension."""


@contextmanager
def _one_thread() -> Iterator[None]:
    """Limit BLAS to one thread.

    The first of overlapping blocks, in several threads, sets the process's limit and removes it at its end: OpenBLAS
    lets no other thread remove it.
    """
    if not _LIMITED.acquire(blocking=False):
        yield
        return
    try:
        with _BLAS.limit(limits=1):
            yield
    finally:
        _LIMITED.release()


@contextmanager
def numpy_as_torch() -> Iterator[None]:
    """Let numpy compute inf and NaN without a warning, as torch does, and multiply matrices in one thread.

    Over small matrices several threads mostly wait for each other.
    """
    with _one_thread(), np.errstate(all="ignore"):
        yield


Array = Any
"""A tensor or a numpy array, in formulas that are written for both: no type has what the two share."""
A = TypeVar("A", "Tensor", np.ndarray, default="Tensor")
"""Tensors throughout, or numpy arrays throughout: what a record is made of is what is computed from it."""
_NUMPY: Any = (np.ndarray, np.generic, float, int)
"""Types of what is no tensor, told apart without torch: regions can be made, and shown in a help text, without it."""


def is_numpy(x: Array) -> bool:
    """Return True for a numpy array or number, False for a tensor."""
    return isinstance(x, _NUMPY)


def tensor(x: Array) -> Tensor:
    """Return the same numbers as a tensor, on the same memory if it is writable."""
    import torch

    if not isinstance(x, np.ndarray):
        return x if isinstance(x, torch.Tensor) else torch.as_tensor(x, device="cpu")
    return torch.from_numpy(x if x.flags.writeable else x.copy())


def as_mask(name: str, x: Array) -> Tensor:
    """Return a mask as a tensor of bools, from bools or from numbers of any type that are all 0 or 1.

    Raises:
        ValueError: another number; the message names the argument and the number.
    """
    import torch

    given = tensor(x if isinstance(x, torch.Tensor) else np.asarray(x))
    strange = (given != 0) & (given != 1)
    if strange.any():
        raise ValueError(f"{name} = {given[strange][0].item():g} at a place; allowed: bool, or 0 and 1")
    return given.bool()


def stack(xs: Sequence[Array]) -> Tensor:
    """Stack along a new first dimension, as a tensor."""
    import torch

    return torch.from_numpy(np.stack(xs)) if isinstance(xs[0], _NUMPY) else torch.stack(tuple(xs))


def like(x: Tensor, other: Array) -> Array:
    """Convert a tensor to the kind of array that ``other`` is."""
    return x.numpy() if isinstance(other, _NUMPY) else x


def exp(x: Array) -> Array:
    """e^x, element by element."""
    return np.exp(x) if isinstance(x, _NUMPY) else x.exp()


def log(x: Array) -> Array:
    """The natural logarithm, element by element."""
    return np.log(x) if isinstance(x, _NUMPY) else x.log()


def log1p(x: Array) -> Array:
    """log(1 + x) without cancellation, element by element."""
    return np.log1p(x) if isinstance(x, _NUMPY) else x.log1p()


def expm1(x: Array) -> Array:
    """e^x - 1 without cancellation, element by element."""
    return np.expm1(x) if isinstance(x, _NUMPY) else x.expm1()


def tanh_(x: Array) -> Array:
    """The hyperbolic tangent, in place."""
    return np.tanh(x, out=x) if isinstance(x, _NUMPY) else x.tanh_()


def relu_(x: Array) -> Array:
    """max(x, 0), in place."""
    return np.maximum(x, 0.0, out=x) if isinstance(x, _NUMPY) else x.relu_()


def positive(x: Array) -> Array:
    """1 where x > 0, else 0, in x's type."""
    return (x > 0.0).astype(x.dtype) if isinstance(x, _NUMPY) else (x > 0.0).to(x.dtype)


def minimum(x: Array, y: Array) -> Array:
    """The smaller one, element by element; NaN where one is NaN."""
    return np.minimum(x, y) if isinstance(x, _NUMPY) else x.minimum(y)


def clip(x: Array, low: float, high: float) -> Array:
    """Limit elements to [``low``, ``high``]."""
    return np.minimum(np.maximum(x, low), high) if isinstance(x, _NUMPY) else x.clamp(low, high)


def where(condition: Array, x: Array, y: Array) -> Array:
    """Return elements of x where the condition holds, of y elsewhere."""
    if isinstance(condition, _NUMPY):
        return np.where(condition, x, y)
    import torch

    return torch.where(condition, x, y)


def concatenate(parts: Sequence[Array]) -> Array:
    """Join arrays along the first dimension."""
    if isinstance(parts[0], _NUMPY):
        return np.concatenate(parts)
    import torch

    return torch.cat(tuple(parts))


def concatenate_last(parts: Sequence[Array]) -> Array:
    """Join arrays along the last dimension."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], _NUMPY):
        return np.concatenate(parts, -1)
    import torch

    return torch.cat(tuple(parts), -1)


def average(x: Tensor) -> float:
    """Return the mean, computed in float64, so that logged numbers carry no summation error."""
    return x.detach().double().mean().item()


def quantile(x: Array, level: float) -> float:
    """Return the smallest element that at least the share ``level`` of the gaps between sorted elements lies below.

    It is an element itself, never a value between two: ``numpy.quantile`` with ``method="higher"``.
    """
    return float(np.quantile(_plain(x), level, method="higher"))


def tail_average(x: Array, level: float) -> float:
    """Return the mean of the largest share 1 - level of the elements, one of them in part; in float64."""
    worst = np.sort(_plain(x).astype(np.float64))[::-1]
    share = (1.0 - level) * worst.size
    weights = np.minimum(share - np.arange(math.ceil(share)), 1.0)
    return float(weights @ worst[: weights.size] / share)


def _plain(x: Array) -> np.ndarray:
    """Return the numbers as one row of numpy's."""
    return np.ravel(x if isinstance(x, _NUMPY) else x.detach().cpu().numpy())


def share(condition: Array) -> Array:
    """Return the share of truth values that are true, in [0, 1]."""
    return condition.mean() if isinstance(condition, _NUMPY) else condition.float().mean()


def split_last(x: Array, n: int) -> Sequence[Array]:
    """Split the last dimension into ``n`` equal pieces."""
    return np.split(x, n, -1) if isinstance(x, _NUMPY) else x.chunk(n, -1)


def split(x: Array, sizes: Sequence[int]) -> Sequence[Array]:
    """Split the first dimension into consecutive pieces of these sizes."""
    return np.split(x, np.cumsum(sizes)[:-1]) if isinstance(x, _NUMPY) else x.split(list(sizes))


def log_softmax(x: Array) -> Array:
    """x - log sum e^x over the last dimension."""
    if not isinstance(x, _NUMPY):
        return _first_to_last(_last_to_first(x).log_softmax(0)) if _is_short(x) else x.log_softmax(-1)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def softmax(x: Array) -> Array:
    """e^x / sum e^x over the last dimension."""
    if not isinstance(x, _NUMPY):
        return _first_to_last(_last_to_first(x).softmax(0)) if _is_short(x) else x.softmax(-1)
    return np.exp(log_softmax(x))


def _is_short(x: Tensor) -> bool:
    """Tell whether torch is several times faster over the first dimension, copy included: over few, on the CPU."""
    return x.ndim > 1 and x.shape[-1] <= _SHORT and x.is_cpu


def _last_to_first(x: Tensor) -> Tensor:
    return x.movedim(-1, 0).contiguous()


def _first_to_last(x: Tensor) -> Tensor:
    return x.movedim(0, -1)


def pick(x: Array, index: Array) -> Array:
    """x[..., index[...]]: one element of the last dimension for each of the others."""
    if not isinstance(x, _NUMPY):
        return x.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    flat = index.reshape(-1)
    return x.reshape(len(flat), -1)[np.arange(len(flat)), flat].reshape(index.shape)


def one_hot(index: Array, like: Array) -> Array:
    """1 at ``index [*B]`` and 0 elsewhere, in the shape ``[*B, k]`` and type of another array."""
    if not isinstance(index, _NUMPY):
        return like.new_zeros(like.shape).scatter_(-1, index.unsqueeze(-1), 1.0)
    return (np.arange(like.shape[-1]) == index[..., None]).astype(like.dtype)


def expand(row: Array, shape: Sequence[int]) -> Array:
    """Repeat a vector as every row of an array of this shape."""
    if not isinstance(row, _NUMPY):
        return row.expand(tuple(shape))
    rows = np.empty(shape, row.dtype)
    rows[:] = row
    return rows
