"""Observations at which a policy is measured before and after an update: held as copies, given to it in pieces."""

from __future__ import annotations

import abc
import copy
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from klrl.kl.drift import probe_rows


class States(abc.ABC):
    """States at which a policy gives distributions; nothing outside may change them.

    Derive from it where a policy needs more than one row per state, as a recurrent one does that reads sequences.
    """

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of states n."""

    @abc.abstractmethod
    def pieces(self, most: int) -> Iterator[tuple[int, Any]]:
        """Yield what the policy is called with, in order, with its number of states: ``most`` where that can be."""

    @abc.abstractmethod
    def probe(self) -> tuple[States, Tensor]:
        """Return a few of the states, for ``drift/kl_initial``, and their rows among all (int64)."""

    @property
    def second_dimension(self) -> int | None:
        """Size of the observations' second dimension if they have three or more: that of [time, environment, ...]."""
        return None


class Rows(States):
    """Observations with one row per state.

    Args:
        observations: an array or a tensor ``[n, ...]``, a dict or a tuple of such, or what has a length and takes rows
            as an index (TorchRL's TensorDict, Tianshou's Batch); not copied.

    Raises:
        ValueError: no rows, or parts that differ in their number.
        TypeError: something else.
    """

    def __init__(self, observations: Any) -> None:
        lengths = {*_lengths(observations)}
        if len(lengths) != 1 or 0 in lengths:
            rows = " and ".join(map(str, sorted(lengths)))
            raise ValueError(f"observations = {rows or 'no'} rows; allowed: at least one, as many in every part")
        self.observations, (self._n,) = observations, lengths

    @classmethod
    def copied(cls, observations: Any) -> Self:
        """Hold a copy: rollout buffers are filled anew."""
        return cls(_map(_copy, observations))

    def __len__(self) -> int:
        return self._n

    def pieces(self, most: int) -> Iterator[tuple[int, Any]]:
        """Yield slices of the observations."""
        if self._n <= most:
            yield self._n, self.observations
            return
        for begin in range(0, self._n, most):
            yield min(most, self._n - begin), self._at(slice(begin, begin + most))

    def probe(self) -> tuple[States, Tensor]:
        """Return up to 256 states, evenly over the rows."""
        rows = probe_rows(self._n)
        return type(self)(self._at(rows.numpy())), rows

    def _at(self, index: slice | np.ndarray) -> Any:
        return _map(lambda x: x[index], self.observations)

    @property
    def second_dimension(self) -> int | None:
        """Size of the second dimension, if every part has it and at least three, a TensorDict two of its own."""
        shapes = [*_shapes(self.observations)]
        second = {int(shape[1]) for shape in shapes if len(shape) > 1}
        return second.pop() if len(second) == 1 and all(len(shape) > 1 for shape in shapes) else None


def _map(function: Any, x: Any) -> Any:
    """Apply a function to every array of a nest of dicts and tuples."""
    if isinstance(x, dict):
        return {key: _map(function, part) for key, part in x.items()}
    return tuple(_map(function, part) for part in x) if isinstance(x, tuple) else function(x)


def _copy(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.detach().clone()
    return x.copy() if isinstance(x, np.ndarray) else copy.deepcopy(x)


def _lengths(x: Any) -> Iterator[int]:
    """Yield the number of rows of every part.

    Raises:
        TypeError: a part has no rows.
    """
    if isinstance(x, (dict, tuple)):
        for part in x.values() if isinstance(x, dict) else x:
            yield from _lengths(part)
        return
    try:
        if isinstance(x, (list, str)):
            raise TypeError
        yield len(x)
    except TypeError:
        what = f"{type(x).__name__} of shape {[*torch.as_tensor(x).shape]}" if np.isscalar(x) else type(x).__name__
        allowed = "arrays or tensors [n, ...], dicts and tuples of them, a TensorDict, a Batch"
        raise TypeError(f"observations = {what}; allowed: {allowed}") from None


def _shapes(x: Any) -> Iterator[tuple[int, ...]]:
    """Yield the shape of every part, its batch shape; of arrays with one dimension per action at most, none."""
    if isinstance(x, (dict, tuple)):
        for part in x.values() if isinstance(x, dict) else x:
            yield from _shapes(part)
        return
    shape = tuple(getattr(x, "shape", ()))
    is_array = isinstance(x, (Tensor, np.ndarray))
    yield shape if len(shape) >= 3 or not is_array else shape[:1]
