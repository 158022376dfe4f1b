"""Reading of regular files of a known size, and clear errors for a full disk."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from klrl.interrupts import held

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}

LARGEST_CONFIG = 2**20
"""Largest config.json, in bytes, that a run can have written."""


class DiskFull(OSError):
    """The disk has no room for a file; the message says where, what was needed and what is free."""


def read_regular_file(path: Path, most: int | None = None, size: int | None = None) -> bytes:
    """Return the bytes of a regular file: links, pipes and other sizes are refused before reading.

    Args:
        path: path of the file.
        most: largest size allowed, in bytes.
        size: size required, in bytes.

    Raises:
        ValueError: its size is another one.
        OSError: it is not a regular file (errors ELOOP and ENXIO), or cannot be read.
    """
    with open_regular_file(path) as file:
        status = os.fstat(file.fileno())
        if size is not None and status.st_size != size:
            raise ValueError(f"{path.name} does not have its size")
        if most is not None and status.st_size > most:
            raise ValueError(f"{path.name} has {status.st_size:,} bytes; allowed: at most {most:,}")
        return file.read(status.st_size)


@contextlib.contextmanager
def open_regular_file(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file to read; a link or a pipe is refused, and nothing waits for it.

    Raises:
        OSError: it is not a regular file (errors ELOOP and ENXIO), or cannot be read.
    """
    try:
        with held():
            file = open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")  # noqa: SIM115  # closed below
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(errno.ELOOP, "a link, not a file", str(path)) from error
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.ENXIO, "not a file", str(path))
        yield file


@contextlib.contextmanager
def reporting_full_disk(path: Path, size: int) -> Iterator[None]:
    """Raise :class:`DiskFull` if there is no room to write ``size`` bytes to ``path``, or to files below it.

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
