"""R6: a disk without room, for one of a run's files or for all: said in a line, and nothing that was there is lost."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from torture.case import Case, Outcome
from torture.processes import Ended, Forks, Process, start_klrl
from torture.runs import Run, at_row, resumption
from torture.states import difference, run_parts, saved_parts

_RUN = Run("ppo", "CartPole-v1", updates=12, every=4, more=("--keep-checkpoints", "99"))
_LEVELS = ("full from the start", "full after some updates", "full after the first checkpoint")
_WRITES = {"checkpoint": (0, 1, 3), "TensorBoard": (0, 3, 6), "metrics.csv": (0, 2, 5), "episodes.csv": (0, 3, 6)}
"""How often each file is written before there is no more room, by level; of a checkpoint, its three files."""
_ROWS = (0, 2, 5)
"""Rows of metrics.csv before a whole disk is full, by level."""
_DISK, _LEFT = 2**21, {"nothing": 0, "room for rows": 2**14}
"""Bytes of a small disk; and of what is left of it when it is full."""


def cases(seed: int) -> list[Case]:
    """Four files at three levels, with a limit on their size; and real small disks, where they can be made."""
    del seed  # nothing here is random
    quick = ("checkpoint", "TensorBoard")
    files = [Case("R6", f"no room for {sink}", _files(sink), quick=sink in quick) for sink in _WRITES]
    disks = [Case("R6", f"a small disk, {left} left", _disks(n)) for left, n in _LEFT.items() if SmallDisk.possible()]
    return [*files, *disks]


def _files(sink: str) -> Callable[[Path], Outcome]:
    """One run without trouble, and one at each level."""

    def case(scratch: Path) -> Outcome:
        problems = []
        forks = Forks(scratch)
        whole = _whole(forks, scratch)
        for level, writes in zip(_LEVELS, _WRITES[sink], strict=True):
            run_dir = scratch / level
            ended = forks.run(["full-disk", sink, f"{writes}", run_dir, *_RUN.words(run_dir)])
            found = [*(_goes_on(ended) if sink == "TensorBoard" else _stops(ended, run_dir))]
            found += _intact(run_dir, whole, at_least=level == _LEVELS[-1])
            found += _goes_on_later(forks, run_dir, whole)
            problems += [f"{level}: {problem}" for problem in found]
        return Outcome(problems, len(_LEVELS))

    return case


def _disks(left: int) -> Callable[[Path], Outcome]:
    """The same with everything on one small disk, so that it depends on what is left which file is the first."""

    def case(scratch: Path) -> Outcome:
        problems = []
        forks = Forks(scratch)
        whole = _whole(forks, scratch)
        for level, rows in zip(_LEVELS, _ROWS, strict=True):
            with SmallDisk(scratch, _DISK) as disk:
                run_dir = disk.path / "run"
                ended = _run_into(disk, left, rows, run_dir, scratch)
                found = [*_stops(ended, run_dir, small=left > 0)]
                found += _intact(run_dir, whole, at_least=level == _LEVELS[-1])
                disk.empty()
                if (run_dir / "config.json").exists():
                    found += _goes_on_later(forks, run_dir, whole)
            problems += [f"{level}: {problem}" for problem in found]
        return Outcome(problems, len(_LEVELS))

    return case


def _whole(forks: Forks, scratch: Path) -> Path:
    """A run without trouble, with a checkpoint of every update."""
    run_dir = scratch / "whole"
    ended = forks.run(["klrl", *replace(_RUN, every=1).words(run_dir)])
    assert ended.code == 0, f"without trouble it ended with {ended.code}: {ended.err[-300:]}"
    return run_dir


def _run_into(disk: SmallDisk, left: int, rows: int, run_dir: Path, scratch: Path) -> Ended:
    """A run whose disk gets full after some rows; it holds its breath for that moment."""
    if rows == 0:
        disk.fill(left)
    process = start_klrl(_RUN.words(run_dir), scratch)
    if rows > 0:
        process.until(at_row(run_dir, rows), every=0.0005)
        process.send(signal.SIGSTOP)
        disk.fill(left)
        process.send(signal.SIGCONT)
    return process.wait()


def _goes_on(ended: Ended) -> Iterator[str]:
    """To the end, with one warning."""
    if ended.code != 0 or not re.fullmatch(_WARNING, ended.err):
        yield f"ended with {ended.code}: {ended.err[-500:]!r}, not one warning"


def _stops(ended: Ended, run_dir: Path, *, small: bool = False) -> Iterator[str]:
    """With exit status 1 and one line, perhaps after TensorBoard's; ``small``: what was needed is more than is free."""
    line = (
        rf"klrl train {_RUN.agent}: (File too large|No space left on device): {re.escape(str(run_dir))}/\S+ "
        r"needs (?P<needed>[\d,]+) bytes, (?P<free>[\d,]+) are free; allowed: more room, or another directory"
        rf"(; klrl resume {re.escape(str(run_dir))} continues it)?"
    )
    said = re.fullmatch(f"({_WARNING})?{line}\n", ended.err)
    if ended.code != 1 or said is None:
        yield f"ended with {ended.code}: {ended.err[-500:]!r}, not one line"
    elif small and not int(said["needed"].replace(",", "")) > int(said["free"].replace(",", "")):
        yield f"it says that there was room: {ended.err}"


_WARNING = r"\S+: RuntimeWarning: \[Errno \d+\] [\w ]+: TensorBoard gets no more points from .*\n(  .*\n)?"


def _intact(run_dir: Path, whole: Path, *, at_least: bool) -> Iterator[str]:
    """Every checkpoint that is there is that of a run without trouble; and nothing is left of those that are not."""
    checkpoints = run_dir / "checkpoints"
    finished = [manifest.parent for manifest in checkpoints.glob("*/MANIFEST.json")]
    if at_least and not finished:
        yield "no checkpoint is left"
    for path in finished:
        if differs := difference(saved_parts(path), saved_parts(whole / "checkpoints" / path.name)):
            yield f"checkpoint {path.name}: {differs}"
    left = [path for path in checkpoints.rglob("*") if path not in finished and path.parent not in finished]
    left += checkpoints.rglob("*.tmp")
    if left:
        yield f"left behind: {', '.join(map(str, left))}"


def _goes_on_later(forks: Forks, run_dir: Path, whole: Path) -> Iterator[str]:
    """When there is room again."""
    ended = forks.run(["klrl", *resumption(_RUN, run_dir)])
    if ended.code != 0:
        yield f"klrl resume ended with {ended.code}: {ended.err[-300:]}"
    elif differs := difference(run_parts(run_dir), run_parts(whole)):
        yield differs


class SmallDisk:
    """A disk of its own, in memory, that lasts as long as a process which nobody but this object knows (Linux).

    Args:
        scratch: where it is mounted, for that process only.
        size: bytes.
    """

    def __init__(self, scratch: Path, size: int) -> None:
        mount = 'mount -t tmpfs -o size="$1" tmpfs "$2" && echo ready && exec cat'
        words: list[str | Path] = ["unshare", "-rm", "sh", "-c", mount, "sh", f"{size}", scratch]
        self._process = Process(words, scratch)
        self._process.until(lambda: "ready" in self._process.out)
        self.path = Path(f"/proc/{self._process.pid}/root{scratch}")
        """Leads there from everywhere."""

    def __enter__(self) -> SmallDisk:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()

    @staticmethod
    def possible() -> bool:
        """Whether this system lets everybody mount for themselves."""
        words = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/tmp"]
        return shutil.which("unshare") is not None and subprocess.run(words, capture_output=True).returncode == 0

    def fill(self, left: int) -> None:
        """Leave so many bytes free, at most."""
        size = max(0, shutil.disk_usage(self.path).free - left)
        with contextlib.suppress(OSError), (self.path / "ballast").open("wb", buffering=0) as file:
            file.write(bytes(size))

    def empty(self) -> None:
        """Take away what :meth:`fill` has put there."""
        (self.path / "ballast").unlink()
