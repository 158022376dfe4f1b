"""Files of finished pieces of long work, one each, so that the same command continues after them.

Such files are trusted as little as saved agents: their size is bounded, links and pipes are refused, and they must be
as written and hold only what such a piece can contain.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from klrl.run.checkpoint import replace
from klrl.run.disk import read_regular_file, reporting_full_disk
from klrl.run.sealed import sealed, unsealed
from klrl.text import plain
from klrl.validation import describe, fits

MOST = 2**22
"""Largest size of a file, in bytes: JSON needs many times its size in memory."""


def keep(path: Path, piece: dict[str, Any]) -> None:
    """Write plain JSON in one step, in place of an older file.

    Raises:
        OSError: the file cannot be written (:class:`klrl.run.disk.DiskFull`: there is no room).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = sealed(piece)
    with reporting_full_disk(path, len(data)):
        replace(path, data)


def kept(path: Path, entries: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what :func:`keep` wrote, or ``None``.

    Args:
        path: path of the file.
        entries: types of required entries, as for a dataclass's fields; others are allowed.

    Raises:
        ValueError: the file holds something else, said in one line; it can be replaced.
        OSError: the file cannot be read, or not be replaced.
    """
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(errno.EISDIR, "a folder, not a file", str(path))
    try:
        piece = unsealed(read_regular_file(path, MOST))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path.name} is not as it was written: {plain(error, 200)}") from error
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        raise ValueError(f"{path.name} is not as it was written: {error.strerror}") from error
    check(path.name, piece, entries)
    return piece


def check(name: str, piece: Mapping[str, Any], entries: Mapping[str, Any]) -> None:
    """Refuse a piece that lacks an entry, or has one of another type.

    Raises:
        ValueError: names the entry.
    """
    for entry, hint in entries.items():
        if not fits(piece.get(entry), hint):
            said = plain(repr(piece.get(entry)), 80)
            raise ValueError(f"{name} is not as it was written: {entry} = {said}; allowed: {describe(hint)}")
