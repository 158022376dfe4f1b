"""The metrics of every update of a training: a sequence of dicts, most of them packed, for there may be millions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from klrl.run.callback import Metrics
from klrl.run.checkpoint import Part

_ROWS = 64
"""As many of the newest rows at least are as they were appended; older ones are packed, so many at a time."""
_ALIKE = 16
"""Blocks of one size become one of the next: of n rows there are about log n blocks, and each is packed as often."""


class History(Sequence[Metrics]):
    """One dict of metrics per update, the oldest first.

    The newest 64 at least are the dicts that were appended, and what is changed in them counts. Those before them are
    packed, read as copies with every number a float, and no longer change.

    >>> history = History([{"drift/kl": 0.1}, {"drift/kl": 0.2, "train/stop_reason": "accepted"}])
    >>> history[-1]["train/stop_reason"], [row["drift/kl"] for row in history]
    ('accepted', [0.1, 0.2])
    """

    def __init__(self, rows: Iterable[Metrics] = ()) -> None:
        self._blocks: list[Block] = []
        self._open: list[Metrics] = []
        self.extend(rows)

    @classmethod
    def of(cls, blocks: Iterable[Block]) -> History:
        """The inverse of :meth:`blocks`."""
        history = cls()
        history._blocks = [*blocks]
        if history._blocks and len(history._blocks[-1]) < 2 * _ROWS:
            history._open = [*history._blocks.pop()]
        return history

    def blocks(self) -> list[Block]:
        """All rows, packed: the same objects as before but for a few at the end."""
        return [*self._blocks, *([Block.of(self._open)] if self._open else [])]

    def append(self, row: Metrics) -> None:
        """Add the metrics of an update.

        Raises:
            ValueError: a row so old that it is packed now holds what is neither a number nor text.
        """
        self._open.append(row)
        if len(self._open) == 2 * _ROWS:
            self._blocks.append(Block.of(self._open[:_ROWS]))
            del self._open[:_ROWS]
            while len(self._blocks) >= _ALIKE and len(self._blocks[-_ALIKE]) == len(self._blocks[-1]):
                self._blocks[-_ALIKE:] = [Block.joined(self._blocks[-_ALIKE:])]

    def extend(self, rows: Iterable[Metrics]) -> None:
        """Add the metrics of several updates."""
        for row in rows:
            self.append(row)

    def copy(self) -> History:
        """A history that does not grow with this one; the newest rows are the same dicts, as a list's would be."""
        other = History()
        other.become(self)
        return other

    def become(self, other: History) -> None:
        """Hold what another one holds now."""
        self._blocks, self._open = other._blocks.copy(), other._open.copy()

    @overload
    def __getitem__(self, index: int) -> Metrics: ...
    @overload
    def __getitem__(self, index: slice) -> list[Metrics]: ...
    def __getitem__(self, index: int | slice) -> Metrics | list[Metrics]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        left = range(len(self))[index]  # IndexError, as a list
        for block in self._blocks:
            if left < len(block):
                return block.row(left)
            left -= len(block)
        return self._open[left]

    def __len__(self) -> int:
        return sum(map(len, self._blocks)) + len(self._open)

    def __iter__(self) -> Iterator[Metrics]:
        return chain(*self._blocks.copy(), self._open.copy())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (History, list)):
            return NotImplemented
        return len(self) == len(other) and all(one == its for one, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr([*self])


@dataclass(frozen=True, eq=False)
class Block:
    """Rows that no longer change: the cells of all of them, one after the other, whichever columns a row has."""

    names: tuple[str, ...]
    """Of the columns."""
    texts: tuple[str, ...]
    columns: np.ndarray
    """Of every cell, ``[C]``: the index i of its name, or -1 - i where its value is a text."""
    values: np.ndarray
    """Of every cell, ``[C]``: its number, or the index of its text."""
    ends: np.ndarray
    """How many cells there are up to each row's end, ``[rows]``."""

    @classmethod
    def of(cls, rows: Iterable[Metrics]) -> Block:
        """Pack.

        Raises:
            ValueError: what is neither a number nor text, by its name.
        """
        names, texts = _Index(), _Index()
        columns, values, ends = [], [], []
        for row in rows:
            for name, x in row.items():
                i = names[name]
                columns.append(-1 - i if isinstance(x, str) else i)
                values.append(texts[x] if isinstance(x, str) else _number(name, x))
            ends.append(len(columns))
        return cls(
            tuple(names), tuple(texts), _narrow(columns, names), np.array(values, np.float64), np.array(ends, int)
        )

    @classmethod
    def joined(cls, blocks: Sequence[Block]) -> Block:
        """The rows of several."""
        names, texts = _Index(), _Index()
        cells = [block._cells([names[x] for x in block.names], [texts[x] for x in block.texts]) for block in blocks]
        columns, values = map(np.concatenate, zip(*cells, strict=True))
        begins = np.cumsum([0, *(len(block.values) for block in blocks)])
        ends = np.concatenate([block.ends + begin for block, begin in zip(blocks, begins, strict=False)])
        return cls(tuple(names), tuple(texts), _narrow(columns, names), values, ends)

    def _cells(self, names: list[int], texts: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Columns and values where names and texts have other places."""
        if (names, texts) == ([*range(len(names))], [*range(len(texts))]):
            return self.columns, self.values
        is_text, values = self.columns < 0, self.values.copy()
        columns = np.array(names, int)[np.where(is_text, -1 - self.columns, self.columns)]
        values[is_text] = np.array(texts, int)[values[is_text].astype(int)]
        return np.where(is_text, -1 - columns, columns), values

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[Metrics]:
        return map(self.row, range(len(self)))

    def row(self, i: int) -> Metrics:
        """A copy of one."""
        cells = slice(int(self.ends[i - 1]) if i else 0, int(self.ends[i]))
        pairs = zip(self.columns[cells].tolist(), self.values[cells].tolist(), strict=True)
        return {self.names[k if k >= 0 else -1 - k]: x if k >= 0 else self.texts[int(x)] for k, x in pairs}

    @cached_property
    def part(self) -> Part:
        """As it is saved."""
        arrays = {"columns": self.columns, "values": self.values, "ends": self.ends}
        for kind, words in (("names", self.names), ("texts", self.texts)):
            coded = [word.encode(errors="surrogatepass") for word in words]
            arrays[kind] = np.frombuffer(b"".join(coded), np.uint8).copy()
            arrays[f"{kind}_ends"] = np.cumsum([len(code) for code in coded], dtype=int)
        return Part({name: torch.from_numpy(x) for name, x in arrays.items()})

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor]) -> Block:
        """The inverse of :attr:`part`.

        Raises:
            ValueError: that is not how rows are packed.
        """
        if tensors.keys() != _TYPES.keys() or any(x.dtype not in _TYPES[k] or x.ndim != 1 for k, x in tensors.items()):
            raise ValueError("history: other arrays than those of packed rows")
        arrays = {name: x.numpy() for name, x in tensors.items()}
        names, texts = (_words(arrays[kind], arrays[f"{kind}_ends"]) for kind in ("names", "texts"))
        columns, values, ends = (arrays[name] for name in ("columns", "values", "ends"))
        if len(values) != len(columns):
            raise ValueError(f"history: {len(values)} values in {len(columns)} cells")
        _check_indices(columns, -len(names), len(names))
        _check_indices(values[columns < 0], 0, len(texts))
        _check_ends(ends, len(columns))
        return cls(names, texts, columns, values, ends)


_LONG, _BYTES = (torch.int64,), (torch.uint8,)
_TYPES = {
    "columns": (torch.int16, *_LONG), "values": (torch.float64,), "ends": _LONG,
    "names": _BYTES, "names_ends": _LONG, "texts": _BYTES, "texts_ends": _LONG,
}  # fmt: skip
"""Of the arrays of a part."""


class _Index(dict[str, int]):
    """Words in the order in which they were asked for; the place of each."""

    def __missing__(self, word: str) -> int:
        self[word] = len(self)
        return self[word]


def _number(name: str, x: Any) -> float:
    try:
        return float(x)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"history: {name} = {x!r}; allowed: a number or text") from error


def _narrow(columns: Any, names: _Index) -> np.ndarray:
    """Indices of names in as few bytes as they need."""
    return np.asarray(columns, np.int16 if len(names) < 2**15 else np.int64)


def _words(codes: np.ndarray, ends: np.ndarray) -> tuple[str, ...]:
    _check_ends(ends, len(codes))
    data = codes.tobytes()
    return tuple(data[a:b].decode(errors="surrogatepass") for a, b in pairwise([0, *ends.tolist()]))


def _check_ends(ends: np.ndarray, last: int) -> None:
    if (np.diff(ends, prepend=0) < 0).any() or (ends[-1] if len(ends) else 0) != last:
        raise ValueError(f"history: pieces that do not add up to {last}")


def _check_indices(indices: np.ndarray, low: int, high: int) -> None:
    wrong = indices[~((indices >= low) & (indices < high) & (indices == np.floor(indices)))]
    if len(wrong):
        raise ValueError(f"history: index {wrong[0]}; allowed: an integer in [{low}, {high})")
