"""One process per run directory: a lock that its owner's death releases.

filelock's ``FileLock`` locks a file that it opens itself; here its primitive locks the directory's own descriptor, by
which a directory that was moved is found, and written to.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakSet

from filelock import lock_descriptor, unlock_descriptor

from klrl.interrupts import held
from klrl.run.disk import read_regular_file, reporting_full_disk
from klrl.text import warn_user

LOCK = "run.lock"


class Lock:
    """A lock held from construction until :meth:`release`, until the object is gone, or until the process ends.

    The directory itself is locked; the file ``run.lock`` only says by whom.

    Args:
        path: an existing directory.

    Raises:
        BlockingIOError: another process (or another lock in this one) holds it; the message says which, and its host.
        DiskFull: there is no room for the file; nothing is locked.
        IsADirectoryError: a folder is in its place; nothing is locked.
    """

    _directory: int | None = None
    """Open while it is locked."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path / LOCK
        with held():
            self._directory = os.open(path, os.O_RDONLY)
            try:
                self._lock(path)
                _locks.add(self)
                self._say()
            except BaseException:
                self.release()
                raise

    def _lock(self, path: Path) -> None:
        assert self._directory is not None
        try:
            is_ours = lock_descriptor(self._directory, blocking=False)
        except OSError as error:
            text = f"run_dir = {path} cannot be locked ({error}): nothing keeps other processes from writing there"
            warn_user(text)
            return
        if not is_ours:
            self._forget()  # it belongs to another lock
            raise BlockingIOError(f"run_dir = {path} is in use by {_owner(self._file)}; allowed: another one")

    def _say(self) -> None:
        """Record the owner in a new file: an existing one, a link for example, is never written to."""
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}) + "\n"
        if self._file.is_dir() and not self._file.is_symlink():
            raise IsADirectoryError(f"{self._file} is a folder; allowed: nothing there, or the file of a lock")
        self._file.unlink(missing_ok=True)
        with reporting_full_disk(self._file, len(text)), self._file.open("x") as file:
            file.write(text)

    def lost(self) -> str | None:
        """Return what happened to the locked directory, if it is no longer where it was."""
        assert self._directory is not None
        ours = os.fstat(self._directory)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if os.path.samestat(ours, self._path.stat()):
                return None
        place = Path(f"/proc/self/fd/{self._directory}")
        now = os.readlink(place) if place.is_symlink() else None
        if ours.st_nlink == 0 or (now is not None and now.endswith(" (deleted)")):
            return "was removed"
        return f"was renamed to {now}" if now is not None else "was renamed"

    @contextlib.contextmanager
    def inside(self) -> Iterator[Path]:
        """Yield a path to the locked directory itself, wherever it is by now; errors inside name it as it was.

        What is written there can never get into another directory that has taken its name (on Linux; elsewhere the path
        is the one that was given).
        """
        place = Path(f"/proc/self/fd/{self._directory}")
        if not place.is_dir():
            yield self._path
            return
        try:
            yield place
        except (OSError, ValueError) as error:
            named = (x.replace(str(place), str(self._path)) if isinstance(x, str) else x for x in error.args)
            error.args = tuple(named)
            if isinstance(error, OSError) and isinstance(error.filename, (str, Path)):
                error.filename = str(error.filename).replace(str(place), str(self._path))
            raise

    def release(self) -> None:
        """Release the lock; again is no error."""
        with held():
            if self._directory is not None:
                with contextlib.suppress(OSError):  # it is gone, or something else that is not ours to remove
                    os.unlink(LOCK, dir_fd=self._directory)
                with contextlib.suppress(OSError):  # closing alone would leave it to processes forked meanwhile
                    unlock_descriptor(self._directory)
                self._forget()

    def __del__(self) -> None:
        self.release()

    def _forget(self) -> None:
        """Close the directory; it stays locked if another process has it open."""
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None


_locks: WeakSet[Lock] = WeakSet()


def _forget_all() -> None:
    """Drop the locks of the parent in a forked process."""
    for lock in _locks:
        lock._forget()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_all)


def check_free(path: Path) -> None:
    """Refuse a directory that is locked.

    Raises:
        BlockingIOError: the message names the owner.
    """
    if path.is_dir() and (path / LOCK).exists():
        with held():
            Lock(path).release()


def _owner(file: Path) -> str:
    try:
        said = json.loads(read_regular_file(file, 1024))
        return f"process {int(said['pid'])} on {said['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
