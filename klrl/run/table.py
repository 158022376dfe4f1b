"""CSV files that grow by rows and survive whatever ends the process that writes them."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from klrl.run.checkpoint import replace
from klrl.run.disk import contents, room_for

EPISODES = ("total_timesteps", "return", "length", "env_index")
"""The columns of ``episodes.csv``."""


class Table:
    """A CSV file, begun anew with the rows it is to have so far; an older one is replaced in one step.

    Args:
        path: of the file; it appears with its first row where there is no header yet.
        header: the columns.
        rows: as many values each.
    """

    def __init__(self, path: Path, header: Sequence[str] = (), rows: Iterable[Sequence[Any]] = ()) -> None:
        self._path = path
        self._file: IO[str] | None = None
        if not header:
            path.unlink(missing_ok=True)
            return
        text = _lines([header, *rows])
        with room_for(path, len(text)):
            replace(path, text.encode())
        self._file = path.open("a", newline="")

    def add(self, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write rows through to the operating system, after ``header`` where there is none yet."""
        if self._file is None:
            self._file = self._path.open("a", newline="")
            rows = [header, *rows]
        text = _lines(rows)
        with room_for(self._path, len(text)):
            self._file.write(text)
            self._file.flush()

    def sync(self) -> None:
        """Make sure the rows are on the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; what it had no room for has been said when it was added."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()


def _lines(rows: Iterable[Sequence[Any]]) -> str:
    lines = io.StringIO(newline="")
    csv.writer(lines).writerows(rows)
    return lines.getvalue()


def episodes_until(path: Path, total_timesteps: int) -> list[list[str]]:
    """The rows of an ``episodes.csv`` up to a step; none after the first that is not whole.

    Raises:
        OSError: what is there is no file, or cannot be read.
    """
    rows: list[list[str]] = []
    if not path.exists():
        return rows
    whole = contents(path).decode(errors="replace").rpartition("\n")[0]
    for row in list(csv.reader(whole.splitlines()))[1:]:
        if len(row) != len(EPISODES) or not row[0].isdecimal() or not row[-1].isdecimal():
            break
        if int(row[0]) <= total_timesteps:
            rows.append(row)
    return rows
