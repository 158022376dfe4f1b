"""Standard output and error that never fail: what cannot be written is dropped, and the work goes on."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
import warnings
from collections.abc import Callable
from typing import Any, TextIO

from klrl.text import colourless, plain


class _Descriptor(io.FileIO):
    """Takes all that is written; what its file does not (a pipe without reader, a full disk) is dropped.

    There is no buffer: nothing that was not written remains for the end of the process to fail at.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream.fileno(), "w", closefd=False)
        self.name = stream.name
        self._before = stream
        self.lost: OSError | None = None
        """Why something was dropped first, if that was not because nobody reads any more."""

    def write(self, data: Any) -> int:
        """Write all of it, or drop the rest."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            self._before.flush()  # what others have written there comes first
            while rest:
                written = super().write(rest)
                if written is None:  # another process has made it non-blocking
                    select.select([], [self.fileno()], [])
                else:
                    rest = rest[written:]
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno not in _UNREAD:
                self.lost = self.lost or error
        return size


_UNREAD = {errno.EPIPE, errno.EIO, errno.EBADF}
"""Numbers of errors by which there is no reader: he went away, his terminal did, or there never was one."""


def steady(stream: TextIO) -> TextIO:
    """The same place to write to, as a stream whose writes never raise; what its encoding lacks becomes an escape.

    Only for files of the operating system: another stream (a notebook's, a test's) is returned as it is.
    """
    if type(stream) is not io.TextIOWrapper or isinstance(stream.buffer, _Descriptor):
        return stream
    try:
        raw = _Descriptor(stream)
    except (OSError, ValueError):  # it is in memory only, or closed
        return stream
    return io.TextIOWrapper(raw, stream.encoding, "backslashreplace", line_buffering=True)


def keep_steady() -> None:
    """Make this process's output :func:`steady`; a descriptor that is closed becomes one that goes nowhere.

    Else the next file that is opened would get its number, and what is meant for the terminal.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
    sys.stdout, sys.stderr = steady(sys.stdout or _nowhere()), steady(sys.stderr or _nowhere())


def _nowhere() -> TextIO:
    return open(os.devnull, "w")


def plain_warnings() -> None:
    """Show warnings in one harmless line each."""
    warnings.formatwarning = lambda message, category, *_: f"klrl: {category.__name__}: {plain(colourless(message))}\n"


def lost(stream: TextIO) -> OSError | None:
    """Why a :func:`steady` stream has not written all, if somebody was there to read it."""
    raw = getattr(stream, "buffer", None)
    return raw.lost if isinstance(raw, _Descriptor) else None


def as_program(main: Callable[[], object]) -> None:
    """Run what a command does, with an output that never fails and warnings on a line each."""
    keep_steady()
    plain_warnings()
    main()
