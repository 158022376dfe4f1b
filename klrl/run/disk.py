"""A full disk, in words: what was to be written and what is free."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


class DiskFull(OSError):
    """There is no room for a file; the message says where, what was needed and what is free."""


def write_text(path: Path, text: str) -> None:
    """Write a small file.

    Raises:
        DiskFull: there is no room for it.
    """
    with room_for(path, len(text.encode())):
        path.write_text(text)


@contextlib.contextmanager
def room_for(path: Path, size: int) -> Iterator[None]:
    """Around the writing of ``size`` bytes to ``path``, or to files below it.

    Raises:
        DiskFull: the disk, a quota or a limit of the process left no room for them.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        there = next(p for p in (path, *path.absolute().parents) if p.exists())
        free = shutil.disk_usage(there).free
        raise DiskFull(
            f"{error.strerror}: {path} needs {size:,} bytes, {free:,} are free; "
            "allowed: more room, or another directory"
        ) from error
