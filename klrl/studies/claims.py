"""Claims on runs: of any number of processes on any machines that share an output, one has a run.

A claim is a lease: a file beside the run directory, which names its owner and which the owner touches. It ends with
its owner, or once it has not been touched for :data:`EXPIRES` seconds. A lease alone cannot keep an owner that was
suspended from writing when it wakes up, so who takes a claim over replaces the run directory by a copy. What the old
owner has open, and checkpoints, which it writes into the directory that it has locked, go to the one that is gone then.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from pathlib import Path

from filelock import SoftFileLease, Timeout

EXPIRES = 60.0
"""Seconds without a sign of life after which a claim expires."""


class Claim:
    """A claim on a run, once :meth:`take` has succeeded.

    Args:
        directory: the run directory, which need not exist.
    """

    def __init__(self, directory: Path) -> None:
        self._file = claim_file(directory)
        self._lease = SoftFileLease(self._file, lease_duration=EXPIRES, thread_local=False, is_singleton=False)
        self.taken = False
        """True if another process had the claim before and did not release it."""

    def take(self) -> bool:
        """Try to get the claim; to see that it has expired takes calls over :data:`EXPIRES` seconds.

        Raises:
            OSError: nothing can be written there.
        """
        self._file.parent.mkdir(parents=True, exist_ok=True)
        before = self._file.exists()
        try:
            self._lease.acquire(timeout=0)
        except Timeout:
            return False
        self.taken = before
        return True

    @property
    def token(self) -> str:
        """Text that the file of this claim has in it, and no other claim's."""
        return self._lease.token or "none"

    @property
    def lost(self) -> bool:
        """True if the claim has expired, and may be another process's by now."""
        owner = self._lease.owner
        return owner is None or owner.token != self._lease.token

    @property
    def owner(self) -> str | None:
        """The owner in words, or ``None`` if nobody has the claim."""
        owner = self._lease.owner
        return None if owner is None else f"process {owner.pid} on {owner.hostname}"

    def release(self) -> None:
        """Give the claim up, if it is not another process's by now; again is no error."""
        if self._lease.is_locked:
            self._lease.release()


def claim_file(directory: Path) -> Path:
    """Return the path of a run's claim: beside its directory."""
    return directory.with_name(f"{directory.name}.claim")


def is_claimed(directory: Path) -> bool:
    """Tell whether a process has claimed a run and has given a sign of life lately."""
    try:
        return time.time() - claim_file(directory).stat().st_mtime < EXPIRES
    except FileNotFoundError:
        return False


def replaced(directory: Path) -> None:
    """Replace a run directory by a copy of itself, so that who has it open or locked writes nowhere any more.

    Whenever the process dies meanwhile, :func:`recovered` puts things right. Checkpoints are linked, not copied: their
    files are never written to again.

    Raises:
        OSError: the disk is full, or somebody else has replaced it at the same time.
    """
    if not directory.is_dir():
        return
    token = uuid.uuid4().hex[:8]
    new, old = (directory.with_name(f"{directory.name}.{token}.{suffix}") for suffix in ("new", "old"))
    for folder, _, files in os.walk(directory):
        there = new / Path(folder).relative_to(directory)
        there.mkdir(parents=True, exist_ok=True)
        for file in files:
            _copy(Path(folder) / file, there / file, link="checkpoints" in there.relative_to(new).parts)
    directory.rename(old)
    new.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def _copy(file: Path, to: Path, *, link: bool) -> None:
    if link:
        with contextlib.suppress(OSError):  # a disk without links
            os.link(file, to)
            return
    with contextlib.suppress(FileNotFoundError):  # removed since it was listed: no checkpoint needs it
        shutil.copy2(file, to)


def recovered(directory: Path) -> None:
    """Undo a replacement that did not end; only for the owner of the claim.

    Raises:
        OSError: a file cannot be moved or removed.
    """
    old, new = ([*directory.parent.glob(f"{directory.name}.????????.{suffix}")] for suffix in ("old", "new"))
    if old and not directory.exists():
        old.pop().rename(directory)
    for left in (*old, *new):
        shutil.rmtree(left)
