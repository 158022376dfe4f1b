"""The metrics of every update of a training: a sequence of dicts, most of them packed, for there may be millions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, pairwise
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from klrl.run.callback import Metrics
from klrl.run.checkpoint import Part
from klrl.shown import table

_T = TypeVar("_T")
_SHOWN = 10
"""Number of the newest rows in a notebook."""
_COLUMNS = (
    "time/total_timesteps", "rollout/ep_rew_mean", "eval/mean_reward", "drift/kl", "drift/kl_max", "drift/kl_target",
    "train/entropy", "train/stop_reason",
)  # fmt: skip
_ROWS = 64
"""Least number of newest rows that stay as appended; older ones are packed, as many at a time."""
_ALIKE = 16
"""Number of blocks of one size that are merged: n rows make about log n blocks, and are packed as often."""


class History(Sequence[Metrics]):
    """One dict of metrics per update, the oldest first.

    At least the newest 64 are the very dicts that were appended, so changes in them count. Older ones are packed: they
    no longer change, and are read as copies in which every number is a float.

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
        """Restore a history from its :meth:`blocks`."""
        history = cls()
        history._blocks = [*blocks]
        if history._blocks and len(history._blocks[-1]) < 2 * _ROWS:
            history._open = [*history._blocks.pop()]
        return history

    def blocks(self) -> list[Block]:
        """Return all rows, packed: the same objects as before except for a few at the end."""
        return [*self._blocks, *([Block.of(self._open)] if self._open else [])]

    def append(self, row: Metrics) -> None:
        """Add the metrics of an update.

        Raises:
            ValueError: a row that is to be packed holds a value that is neither a number nor text.
        """
        self._open.append(row)
        if len(self._open) == 2 * _ROWS:
            self._blocks.append(Block.of(self._open[:_ROWS]))
            del self._open[:_ROWS]
            while len(self._blocks) >= _ALIKE and len(self._blocks[-_ALIKE]) == len(self._blocks[-1]):
                self._blocks[-_ALIKE:] = [Block.joined(self._blocks[-_ALIKE:])]

    def keep_newest(self) -> None:
        """Keep the newest row as it is now, whatever becomes of the dict that was appended."""
        self._open[-1] = dict(self._open[-1])

    def extend(self, rows: Iterable[Metrics]) -> None:
        """Add the metrics of several updates."""
        for row in rows:
            self.append(row)

    def copy(self) -> History:
        """Return a copy that does not grow with this history; the newest rows are the same dicts, as in a list."""
        other = History()
        other.become(self)
        return other

    def become(self, other: History) -> None:
        """Replace the rows by those of another history."""
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

    def _repr_html_(self) -> str:
        """The newest updates as a table for notebooks: return, and how far the policy moved."""
        newest = self[-_SHOWN:]
        names = [name for name in _COLUMNS if any(name in row for row in newest)]
        more = f", the last {len(newest)}" if len(newest) < len(self) else ""
        rows = [[self._cell(row, name) for name in names] for row in newest]
        return table(f"history: {len(self)} updates{more}", rows, names)

    @staticmethod
    def _cell(row: Metrics, name: str) -> str:
        x = row.get(name, "")
        return f"{x:,.0f}" if name == _COLUMNS[0] and x != "" else f"{x:.4g}" if isinstance(x, float) else str(x)


@dataclass(frozen=True, eq=False)
class Block:
    """Rows that no longer change: all their numbers in one array, whichever columns each row has."""

    names: tuple[str, ...]
    """Names of the columns."""
    texts: tuple[str, ...]
    layouts: tuple[tuple[int, ...], ...]
    """Distinct orders of a row's columns: the index i of a name, or -1 - i if the value is text."""
    rows: np.ndarray
    """Index of each row's layout, ``[rows]``."""
    values: np.ndarray
    """Number of each cell, or the index of its text, ``[C]``."""

    @classmethod
    def of(cls, rows: Iterable[Metrics]) -> Block:
        """Pack rows.

        Raises:
            ValueError: a value is neither a number nor text; names its metric.
        """
        names, texts, layouts = _Index[str](), _Index[str](), _Index[tuple[int, ...]]()
        kinds: list[int] = []
        values: list[float] = []
        for row in rows:
            kinds.append(layouts[tuple(-1 - names[k] if isinstance(x, str) else names[k] for k, x in row.items())])
            values.extend(texts[x] if isinstance(x, str) else _number(name, x) for name, x in row.items())
        return cls(tuple(names), tuple(texts), tuple(layouts), _narrow(kinds), np.array(values, np.float64))

    @classmethod
    def joined(cls, blocks: Sequence[Block]) -> Block:
        """Join the rows of several blocks."""
        names, texts, layouts = _Index[str](), _Index[str](), _Index[tuple[int, ...]]()
        kinds, values = [], []
        for block in blocks:
            name, text = [names[x] for x in block.names], [texts[x] for x in block.texts]
            moved = [tuple(-1 - name[-1 - i] if i < 0 else name[i] for i in layout) for layout in block.layouts]
            kinds.append(np.array([layouts[layout] for layout in moved], int)[block.rows])
            values.append(block.values if text == [*range(len(text))] else block._with_texts(text))
        return cls(tuple(names), tuple(texts), tuple(layouts), _narrow(np.concatenate(kinds)), np.concatenate(values))

    def _with_texts(self, texts: list[int]) -> np.ndarray:
        """Return the values with new indices of their texts."""
        values, is_text = self.values.copy(), self._columns < 0
        values[is_text] = np.array(texts)[values[is_text].astype(int)]
        return values

    @property
    def _columns(self) -> np.ndarray:
        """Entry of each cell in its row's layout, ``[C]``."""
        layouts = [np.array(layout, int) for layout in self.layouts]
        return np.concatenate([np.zeros(0, int), *(layouts[i] for i in self.rows.tolist())])

    @cached_property
    def _ends(self) -> np.ndarray:
        """Number of cells up to each row's end, ``[rows]``."""
        return np.cumsum(np.array([len(layout) for layout in self.layouts], int)[self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Metrics]:
        return map(self.row, range(len(self)))

    def row(self, i: int) -> Metrics:
        """Return a copy of one row."""
        layout, end = self.layouts[self.rows[i]], int(self._ends[i])
        cells = zip(layout, self.values[end - len(layout) : end].tolist(), strict=True)
        return {self.names[k if k >= 0 else -1 - k]: x if k >= 0 else self.texts[int(x)] for k, x in cells}

    @cached_property
    def part(self) -> Part:
        """The block as it is saved."""
        arrays = {"rows": self.rows, "values": self.values}
        arrays["layouts"] = np.array([*chain(*self.layouts)], int)
        arrays["layouts_ends"] = np.cumsum([len(layout) for layout in self.layouts], dtype=int)
        for kind, words in (("names", self.names), ("texts", self.texts)):
            coded = [word.encode(errors="surrogatepass") for word in words]
            arrays[kind] = np.frombuffer(b"".join(coded), np.uint8).copy()
            arrays[f"{kind}_ends"] = np.cumsum([len(code) for code in coded], dtype=int)
        return Part({name: torch.from_numpy(x) for name, x in arrays.items()})

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor]) -> Block:
        """Restore a block from :attr:`part`.

        Raises:
            ValueError: these are not packed rows.
        """
        older = "columns" in tensors
        types = _TYPES_4 if older else _TYPES
        if tensors.keys() != types.keys() or any(x.dtype not in types[k] or x.ndim != 1 for k, x in tensors.items()):
            raise ValueError("history: other arrays than those of packed rows")
        arrays = {name: x.numpy() for name, x in tensors.items()}
        names, texts = _texts(arrays, "names"), _texts(arrays, "texts")
        columns, ends = ("columns", "ends") if older else ("layouts", "layouts_ends")
        _check_indices(arrays[columns], -len(names), len(names))
        layouts = [tuple(piece.tolist()) for piece in _pieces(arrays[columns], arrays[ends])]
        if older:  # there a layout is that of one row
            distinct = _Index[tuple[int, ...]]()
            rows, layouts = _narrow([distinct[layout] for layout in layouts]), [*distinct]
        else:
            rows = arrays["rows"]
        _check_indices(rows, 0, len(layouts))
        cells = np.bincount(rows, minlength=len(layouts)) @ np.array([len(layout) for layout in layouts], int)
        if len(arrays["values"]) != cells:  # asked before there is anything as large as what the rows ask for
            raise ValueError(f"history: {len(arrays['values'])} values in {cells} cells")
        block = cls(names, texts, tuple(layouts), rows, arrays["values"])
        _check_indices(block.values[block._columns < 0], 0, len(texts))
        return block


_LONG, _BYTES = (torch.int64,), (torch.uint8,)
_TYPES = {
    "rows": (torch.int16, *_LONG), "values": (torch.float64,), "layouts": _LONG, "layouts_ends": _LONG,
    "names": _BYTES, "names_ends": _LONG, "texts": _BYTES, "texts_ends": _LONG,
}  # fmt: skip
"""Types of a part's arrays."""
_TYPES_4 = {
    "columns": (torch.int16, *_LONG), "values": (torch.float64,), "ends": _LONG,
    "names": _BYTES, "names_ends": _LONG, "texts": _BYTES, "texts_ends": _LONG,
}  # fmt: skip
"""Types in format 4, which names the columns of every row."""


class _Index(dict[_T, int]):
    """Distinct keys in the order of their first look-up, with their positions."""

    def __missing__(self, key: _T) -> int:
        self[key] = len(self)
        return self[key]


def _number(name: str, x: Any) -> float:
    try:
        return float(x)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"history: {name} = {x!r}; allowed: a number or text") from error


def _narrow(indices: Any) -> np.ndarray:
    """Return indices in as few bytes as they need."""
    wide = np.asarray(indices, np.int64)
    return wide.astype(np.int16) if wide.max(initial=0) < 2**15 else wide


def _pieces(array: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    _check_ends(ends, len(array))
    return [array[a:b] for a, b in pairwise([0, *ends.tolist()])]


def _texts(arrays: Mapping[str, np.ndarray], kind: str) -> tuple[str, ...]:
    pieces = _pieces(arrays[kind], arrays[f"{kind}_ends"])
    return tuple(piece.tobytes().decode(errors="surrogatepass") for piece in pieces)


def _check_ends(ends: np.ndarray, last: int) -> None:
    if (np.diff(ends, prepend=0) < 0).any() or (ends[-1] if len(ends) else 0) != last:
        raise ValueError(f"history: pieces that do not add up to {last}")


def _check_indices(indices: np.ndarray, low: int, high: int) -> None:
    wrong = indices[~((indices >= low) & (indices < high) & (indices == np.floor(indices)))]
    if len(wrong):
        raise ValueError(f"history: index {wrong[0]}; allowed: an integer in [{low}, {high})")
