"""One process per run directory: a lock that its owner's death releases."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import warnings
from pathlib import Path

from klrl.run.disk import write_text

try:
    import fcntl
except ImportError:  # Windows has no such locks; there is none then
    fcntl = None  # type: ignore[assignment]

LOCK = "run.lock"


class Lock:
    """Held from construction until :meth:`release`, or until the process ends, however it does.

    The directory itself is locked; the file ``run.lock`` only says by whom.

    Args:
        path: an existing directory.

    Raises:
        BlockingIOError: another process has it (or another lock in this one); which, and on which host.
        DiskFull: there is no room for the file; nothing is locked.
    """

    def __init__(self, path: Path) -> None:
        self._file = path / LOCK
        self._directory: int | None = os.open(path, os.O_RDONLY)
        try:
            if fcntl is not None:
                fcntl.flock(self._directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._directory)
            raise BlockingIOError(f"run_dir = {path} is in use by {_owner(self._file)}; allowed: another one") from None
        except OSError as error:
            text = f"run_dir = {path} cannot be locked ({error}): nothing keeps other processes from writing there"
            warnings.warn(text, RuntimeWarning, stacklevel=3)
        try:
            write_text(self._file, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n")
        except OSError:
            self.release()
            raise

    def release(self) -> None:
        """Let others in; once more is no harm."""
        if self._directory is not None:
            self._file.unlink(missing_ok=True)
            if fcntl is not None:  # closing alone would leave it to processes that were forked meanwhile
                with contextlib.suppress(OSError):
                    fcntl.flock(self._directory, fcntl.LOCK_UN)
            os.close(self._directory)
            self._directory = None


def check_free(path: Path) -> None:
    """Refuse a directory that somebody has locked.

    Raises:
        BlockingIOError: saying who.
    """
    if path.is_dir() and (path / LOCK).exists():
        Lock(path).release()


def _owner(file: Path) -> str:
    try:
        said = json.loads(file.read_text())
        return f"process {int(said['pid'])} on {said['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
