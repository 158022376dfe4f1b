"""Standard output and error that never fail: text that cannot be written is dropped, and work continues.

By hand because Python, and with it Rich, raises where a reader has gone away, and once more at the end of the process.
"""

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
    """Accepts all text; what its file does not take (a pipe without reader, a full disk) is dropped.

    There is no buffer, so nothing is left that could fail to be written at the end of the process.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream.fileno(), "w", closefd=False)
        self.name = stream.name
        self._before = stream
        self.lost: OSError | None = None
        """First error by which text was dropped, unless it was that nobody reads any more."""

    def write(self, data: Any) -> int:
        """Write all of it, or drop the rest."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            self._before.flush()  # text already written there comes first
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
"""Error numbers for a missing reader: it went away, its terminal did, or there never was one."""


def steady(stream: TextIO) -> TextIO:
    """Return the stream with writes that never raise; characters outside its encoding become escapes.

    Only for files of the operating system: another stream (a notebook's, a test's) is returned unchanged.
    """
    if type(stream) is not io.TextIOWrapper or isinstance(stream.buffer, _Descriptor):
        return stream
    try:
        raw = _Descriptor(stream)
    except (OSError, ValueError):  # it is in memory only, or closed
        return stream
    return io.TextIOWrapper(raw, stream.encoding, "backslashreplace", line_buffering=True)


def keep_steady() -> None:
    """Make this process's output :func:`steady`; closed descriptors are replaced by ones to nowhere.

    Otherwise the next file that is opened would get its number, and text meant for the terminal.
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
    """Show each warning as one harmless line."""
    warnings.formatwarning = lambda message, category, *_: f"klrl: {category.__name__}: {plain(colourless(message))}\n"


def lost(stream: TextIO) -> OSError | None:
    """Return the error by which a :func:`steady` stream dropped text, if there was a reader."""
    raw = getattr(stream, "buffer", None)
    return raw.lost if isinstance(raw, _Descriptor) else None


def as_program(main: Callable[[], object]) -> None:
    """Run a command with an output that never fails and with one line per warning."""
    keep_steady()
    plain_warnings()
    main()
