"""What formulas need so that they read the same for tensors and for numpy arrays.

On a minibatch, an operation's cost is not its arithmetic but the way to it, and numpy's way is the shorter one. So the
formulas that an update needs take both: arrays in, arrays out; tensors in, tensors out, with their graph. Both share
the operators, ``@``, ``.T``, ``.sum``, ``.mean``, ``.argmax`` and ``.reshape``; the rest is here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor
from typing_extensions import TypeVar

_blas = ThreadpoolController().select(user_api="blas")
_BLAS = _blas.select(filepath=[pool["filepath"] for pool in _blas.info() if "numpy" in pool["filepath"]])
"""numpy's own; another one torch may share."""
_LIMITED = Lock()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Of blocks that overlap in several threads the first sets the process's limit, and takes it back at its end.

    What one thread has set, OpenBLAS lets no other one take back.
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
A = TypeVar("A", Tensor, np.ndarray, default=Tensor)
"""Tensors throughout, or numpy arrays throughout: what a record is made of is what is computed from it."""


def is_numpy(x: Array) -> bool:
    """Whether it is a numpy array (or number), and no tensor."""
    return not isinstance(x, Tensor)


def tensor(x: Array) -> Tensor:
    """The same numbers as a tensor, on the same memory if it may be written to."""
    if not isinstance(x, np.ndarray):
        return x if isinstance(x, Tensor) else torch.as_tensor(x, device="cpu")
    return torch.from_numpy(x if x.flags.writeable else x.copy())


def stack(xs: Sequence[Array]) -> Tensor:
    """Along a new first dimension, as a tensor."""
    return torch.stack(tuple(xs)) if isinstance(xs[0], Tensor) else torch.from_numpy(np.stack(xs))


def like(x: Tensor, other: Array) -> Array:
    """A tensor as what ``other`` is."""
    return x if isinstance(other, Tensor) else x.numpy()


def exp(x: Array) -> Array:
    """e^x, element by element."""
    return x.exp() if isinstance(x, Tensor) else np.exp(x)


def log(x: Array) -> Array:
    """The natural logarithm, element by element."""
    return x.log() if isinstance(x, Tensor) else np.log(x)


def log1p(x: Array) -> Array:
    """log(1 + x) without cancellation, element by element."""
    return x.log1p() if isinstance(x, Tensor) else np.log1p(x)


def expm1(x: Array) -> Array:
    """e^x - 1 without cancellation, element by element."""
    return x.expm1() if isinstance(x, Tensor) else np.expm1(x)


def tanh_(x: Array) -> Array:
    """The hyperbolic tangent, in place."""
    return x.tanh_() if isinstance(x, Tensor) else np.tanh(x, out=x)


def relu_(x: Array) -> Array:
    """max(x, 0), in place."""
    return x.relu_() if isinstance(x, Tensor) else np.maximum(x, 0.0, out=x)


def positive(x: Array) -> Array:
    """1 where x > 0, else 0, in x's type."""
    return (x > 0.0).to(x.dtype) if isinstance(x, Tensor) else (x > 0.0).astype(x.dtype)


def minimum(x: Array, y: Array) -> Array:
    """The smaller one, element by element; NaN where one is NaN."""
    return torch.minimum(x, y) if isinstance(x, Tensor) else np.minimum(x, y)


def clip(x: Array, low: float, high: float) -> Array:
    """Elements below ``low`` and above ``high`` set to these."""
    return x.clamp(low, high) if isinstance(x, Tensor) else np.minimum(np.maximum(x, low), high)


def where(condition: Array, x: Array, y: Array) -> Array:
    """Elements of x where the condition holds, of y elsewhere."""
    return torch.where(condition, x, y) if isinstance(condition, Tensor) else np.where(condition, x, y)


def concatenate(parts: Sequence[Array]) -> Array:
    """One after the other along the first dimension."""
    return torch.cat(tuple(parts)) if isinstance(parts[0], Tensor) else np.concatenate(parts)


def concatenate_last(parts: Sequence[Array]) -> Array:
    """One beside the other along the last dimension."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat(tuple(parts), -1) if isinstance(parts[0], Tensor) else np.concatenate(parts, -1)


def share(condition: Array) -> Array:
    """How many of these truth values hold, of all: a number in [0, 1]."""
    return condition.float().mean() if isinstance(condition, Tensor) else condition.mean()


def split_last(x: Array, n: int) -> Sequence[Array]:
    """``n`` equal pieces of the last dimension."""
    return x.chunk(n, -1) if isinstance(x, Tensor) else np.split(x, n, -1)


def split(x: Array, sizes: Sequence[int]) -> Sequence[Array]:
    """Consecutive pieces of these sizes along the first dimension."""
    return x.split(list(sizes)) if isinstance(x, Tensor) else np.split(x, np.cumsum(sizes)[:-1])


def log_softmax(x: Array) -> Array:
    """x - log sum e^x over the last dimension."""
    if isinstance(x, Tensor):
        return torch.log_softmax(x, dim=-1)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def pick(x: Array, index: Array) -> Array:
    """x[..., index[...]]: one element of the last dimension for each of the others."""
    if isinstance(x, Tensor):
        return x.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    flat = index.reshape(-1)
    return x.reshape(len(flat), -1)[np.arange(len(flat)), flat].reshape(index.shape)


def one_hot(index: Array, like: Array) -> Array:
    """1 at ``index [*B]`` and 0 elsewhere, in the shape ``[*B, k]`` and type of another array."""
    if isinstance(index, Tensor):
        return torch.zeros_like(like).scatter_(-1, index.unsqueeze(-1), 1.0)
    return (np.arange(like.shape[-1]) == index[..., None]).astype(like.dtype)


def expand(row: Array, shape: Sequence[int]) -> Array:
    """A vector as every row of an array of this shape."""
    if isinstance(row, Tensor):
        return row.expand(tuple(shape))
    rows = np.empty(shape, row.dtype)
    rows[:] = row
    return rows
