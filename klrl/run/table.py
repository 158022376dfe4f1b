"""CSV files that grow by rows and by columns, and survive whatever ends the process that writes them."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from klrl.interrupts import held
from klrl.run.checkpoint import replace
from klrl.run.disk import contents, room_for

EPISODES = ("total_timesteps", "return", "length", "env_index")
"""The columns of ``episodes.csv``."""

Row = Mapping[str, Any]
"""Values by the names of their columns; a cell without a value stays empty."""


class Table:
    """A CSV file, begun anew with the rows it is to have so far; an older one is replaced in one step.

    Args:
        path: of the file; it appears with its first row where there is no column yet.
        columns: in their order. Rows may bring new ones, which come after these in the order in which they are met.
        rows: what it is to have.
    """

    def __init__(self, path: Path, columns: Sequence[str] = (), rows: Iterable[Row] = ()) -> None:
        self._path = path
        self._file: IO[str] | None = None
        rows = [*rows]
        self._columns = _united(columns, rows)
        if self._columns:
            self._begin(rows)
        else:
            path.unlink(missing_ok=True)

    def add(self, rows: Iterable[Row]) -> None:
        """Write rows through to the operating system.

        Where they bring new columns, the file is replaced in one step by one that has these from its first row on.
        """
        rows = [*rows]
        known, self._columns = self._columns, _united(self._columns, rows)
        if self._file is None and self._columns:
            with held():  # until the open file has its owner
                self._file = self._open()
            self._append(_lines(self._columns, rows, header=True))
        elif len(self._columns) > len(known):
            self._begin([*self._rows(), *rows])
        elif rows:
            self._append(_lines(self._columns, rows))

    def sync(self) -> None:
        """Make sure the rows are on the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; what it had no room for has been said when it was added."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def _begin(self, rows: Iterable[Row]) -> None:
        text = _lines(self._columns, rows, header=True).encode()
        with room_for(self._path, len(text)):
            replace(self._path, text)
        with held():
            older, self._file = self._file, self._open()
        if older is not None:
            older.close()

    def _open(self) -> IO[str]:
        return self._path.open("a+", encoding="utf-8", newline="")

    def _append(self, text: str) -> None:
        assert self._file is not None
        with room_for(self._path, len(text)):
            self._file.write(text)
            self._file.flush()

    def _rows(self) -> list[dict[str, str]]:
        """What has been written, by the open file: whoever has moved it since has not changed what is in it."""
        assert self._file is not None
        self._file.seek(0)
        return list(csv.DictReader(self._file))


def _united(columns: Sequence[str], rows: Iterable[Row]) -> list[str]:
    """The columns, then those of the rows, each once."""
    return [*dict.fromkeys([*columns, *(name for row in rows for name in row)])]


def _lines(columns: Sequence[str], rows: Iterable[Row], *, header: bool = False) -> str:
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, columns)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return lines.getvalue()


def episodes_until(path: Path, total_timesteps: int) -> list[dict[str, str]]:
    """The rows of an ``episodes.csv`` up to a step; none after the first that is not whole.

    Raises:
        OSError: what is there is no file, or cannot be read.
    """
    rows: list[dict[str, str]] = []
    if not path.exists():
        return rows
    whole = contents(path).decode(errors="replace").rpartition("\n")[0]
    for row in list(csv.reader(whole.splitlines()))[1:]:
        if len(row) != len(EPISODES) or not row[0].isdecimal() or not row[-1].isdecimal():
            break
        if int(row[0]) <= total_timesteps:
            rows.append(dict(zip(EPISODES, row, strict=True)))
    return rows
