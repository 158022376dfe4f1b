"""R16: a long run, watched from outside: memory, open files, shared memory, processes."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from torture.case import Case, Outcome
from torture.failures import orphans
from torture.processes import Watched
from torture.runs import Run, written

_KIB = 8.0
"""Most memory per update that may stay: the history is one, about thirty numbers an update."""
_NOISE = 2048.0
"""KiB that come and go."""
_WARM_UP, _PAUSE = 50, 0.25
_SHORT = 60
"""Updates of the quick case after the warm-up."""


def cases(seed: int, minutes: float = 2.0) -> list[Case]:
    """A run of so many minutes with every engine, and a short one."""
    seconds = 60.0 * minutes
    long = [Case("R16", f"{mode}, as long as asked", _soak(mode, seconds), timeout=600.0 + 2 * seconds)
            for mode in ("sync", "async")]  # fmt: skip
    return [*long, Case("R16", f"async, {_SHORT} updates", _soak("async", 0.0), quick=True, timeout=600.0)]


def _soak(mode: str, seconds: float) -> Callable[[Path], Outcome]:
    def case(scratch: Path) -> Outcome:
        run_dir, shared = scratch / "run", _shared_memory()
        run = Run("ppo", "CartPole-v1", mode, updates=10**7, every=20)
        process = run.start(scratch, run_dir)
        process.until(lambda: written(run_dir) > _WARM_UP, 300.0, every=0.05)
        began, first = time.monotonic(), written(run_dir)
        memory, files = [_kib(process)], {_files(process)}
        while process.running and (time.monotonic() < began + seconds or written(run_dir) < first + _SHORT):
            time.sleep(_PAUSE)
            memory.append(_kib(process))
            files.add(_files(process))
        updates = written(run_dir) - first
        third = max(1, len(memory) // 3)
        growth = statistics.median(memory[-third:]) - statistics.median(memory[:third])
        process.send(signal.SIGINT)
        ended = process.wait()
        problems = {
            f"{growth:.0f} KiB more after {updates} updates": growth > _NOISE + _KIB * updates,
            f"{min(files)} to {max(files)} open files": max(files) - min(files) > _PASSING,
            f"left in shared memory: {_shared_memory() - shared}": bool(_shared_memory() - shared),
            f"status {ended.code}": ended.code != 128 + signal.SIGINT,
        }
        wrong = [text for text, so in problems.items() if so] + orphans(process)
        return Outcome(wrong, 1, {"updates": updates, "largest growth, KiB per update": growth / max(1, updates)})

    return case


_PASSING = 3
"""Open files while one is being written: itself, its directory."""


def _kib(process: Watched) -> float:
    """Memory of all processes of the run."""
    total = 0
    for pid in process.survivors():
        status = _text(Path(f"/proc/{pid}/status"))
        total += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return float(total)


def _files(process: Watched) -> int:
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended
        return ""


def _shared_memory() -> set[str]:
    """What multiprocessing has there; other programs have theirs."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(("pym-", "psm_", "sem.mp-"))}
