"""CSV files that grow by rows and columns, and survive however the writing process ends."""

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
from klrl.run.disk import read_regular_file, reporting_full_disk

EPISODES = ("total_timesteps", "return", "length", "env_index")
"""The columns of ``episodes.csv``."""

Row = Mapping[str, Any]
"""Values by column name; a missing value leaves its cell empty."""


class CsvLog:
    """A CSV file, written anew with the rows given so far; an older one is replaced in one step.

    Args:
        path: path of the file; without columns it is created with its first row.
        columns: names in order. Rows may add new ones, in the order in which they appear.
        rows: rows to begin with.
    """

    def __init__(self, path: Path, columns: Sequence[str] = (), rows: Iterable[Row] = ()) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._last = b""
        """The last line of the file."""
        rows = [*rows]
        self._columns = _united(columns, rows)
        if self._columns:
            self._begin(rows)
        else:
            path.unlink(missing_ok=True)

    def add(self, rows: Iterable[Row]) -> None:
        """Write rows through to the operating system.

        If they add columns, the file is replaced in one step by one that has these from its first row on.
        """
        rows = [*rows]
        known, self._columns = self._columns, _united(self._columns, rows)
        if self._file is None and self._columns:
            with held():  # until the open file has its owner
                self._file = self._path.open("w+b")
            self._append(_lines(self._columns, [], header=True) + self._encoded(rows))
        elif len(self._columns) > len(known):
            self._begin([*self._rows(), *rows])
        elif rows:
            self._append(self._encoded(rows))

    def amend(self, row: Row) -> None:
        """Write the last row anew, in one write over the old one, so that at no time it is missing.

        If it is shorter than that, or has new columns, the file is replaced in one step.
        """
        known, self._columns = self._columns, _united(self._columns, [row])
        line = _lines(self._columns, [row])
        if len(self._columns) > len(known) or len(line) < len(self._last):
            self._begin([*self._rows()[:-1], row])
        else:
            assert self._file is not None
            self._file.seek(-len(self._last), os.SEEK_END)
            self._last = line
            self._write(line)

    def sync(self) -> None:
        """Synchronise the rows to the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; an error about a full disk has been raised before, when the row was added."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def _begin(self, rows: Iterable[Row]) -> None:
        text = _lines(self._columns, [], header=True) + self._encoded(rows)
        with reporting_full_disk(self._path, len(text)):
            replace(self._path, text)
        with held():
            older, self._file = self._file, self._path.open("r+b")
        if older is not None:
            older.close()

    def _encoded(self, rows: Iterable[Row]) -> bytes:
        """Return the rows' lines, and remember the last one."""
        rows = [*rows]
        self._last = _lines(self._columns, rows[-1:])
        return _lines(self._columns, rows)

    def _append(self, text: bytes) -> None:
        assert self._file is not None
        self._file.seek(0, os.SEEK_END)
        self._write(text)

    def _write(self, text: bytes) -> None:
        assert self._file is not None
        with reporting_full_disk(self._path, len(text)):
            self._file.write(text)
            self._file.flush()

    def _rows(self) -> list[dict[str, str]]:
        """Return the rows written so far, from the open file, which may have been moved since."""
        assert self._file is not None
        self._file.seek(0)
        return list(csv.DictReader(io.StringIO(self._file.read().decode(), newline="")))


def _united(columns: Sequence[str], rows: Iterable[Row]) -> list[str]:
    """Return the columns, then those of the rows, each once."""
    return [*dict.fromkeys([*columns, *(name for row in rows for name in row)])]


def _lines(columns: Sequence[str], rows: Iterable[Row], *, header: bool = False) -> bytes:
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, columns)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return lines.getvalue().encode()


def episodes_until(path: Path, total_timesteps: int) -> list[dict[str, str]]:
    """Return the rows of an ``episodes.csv`` up to a step, ending before the first incomplete row.

    Raises:
        OSError: it is not a regular file, or cannot be read.
    """
    rows: list[dict[str, str]] = []
    if not path.exists():
        return rows
    whole = read_regular_file(path).decode(errors="replace").rpartition("\n")[0]
    for row in list(csv.reader(whole.splitlines()))[1:]:
        if len(row) != len(EPISODES) or not row[0].isdecimal() or not row[-1].isdecimal():
            break
        if int(row[0]) <= total_timesteps:
            rows.append(dict(zip(EPISODES, row, strict=True)))
    return rows


def last_tenth(path: Path, total_timesteps: float) -> list[float]:
    """Return the returns of the episodes of an ``episodes.csv`` that ended in the last tenth of a training.

    Raises:
        OSError: it is not a regular file, or cannot be read.
        ValueError: a return is no number.
    """
    rows = episodes_until(path, int(total_timesteps))
    return [float(row["return"]) for row in rows if int(row["total_timesteps"]) > 0.9 * total_timesteps]
