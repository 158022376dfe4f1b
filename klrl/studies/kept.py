"""What long work keeps of every piece that is finished, in a file each, so that the same command goes on after it.

Such files are read as suspiciously as saved agents: bounded, no link and no pipe, only as they were written, and only
what such a piece can have left.
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
"""Bytes of a file: JSON needs many times its size in memory."""


def keep(path: Path, piece: dict[str, Any]) -> None:
    """Write what is plain JSON: the file is there at once and whole, and an older one is replaced.

    Raises:
        OSError: it cannot be written (:class:`klrl.run.disk.DiskFull`: there is no room).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = sealed(piece)
    with reporting_full_disk(path, len(data)):
        replace(path, data)


def kept(path: Path, entries: Mapping[str, Any]) -> dict[str, Any] | None:
    """What :func:`keep` wrote; ``None`` where nothing is.

    Args:
        path: of the file.
        entries: the type of each that must be there, as of a dataclass's field; more may be.

    Raises:
        ValueError: something else is there, in one line; it can be replaced.
        OSError: what is there cannot be read, or not be replaced.
    """
    if path.is_dir() and not path.is_symlink():
        raise IsADirectoryError(errno.EISDIR, "a folder, where a file is to be", str(path))
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
    """Refuse what lacks an entry, or has one of another type.

    Raises:
        ValueError: which one.
    """
    for entry, hint in entries.items():
        if not fits(piece.get(entry), hint):
            said = plain(repr(piece.get(entry)), 80)
            raise ValueError(f"{name} is not as it was written: {entry} = {said}; allowed: {describe(hint)}")
