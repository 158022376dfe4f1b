"""Cases of the protocol: what one is, how many run side by side, what their results say."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from klrl.text import cell, one_line
from torture.processes import Unexpected, Watched, owned, patient

Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of a case that tries something several times, or measures something."""

    problems: Sequence[str] = ()
    """A sentence on every trial that failed."""
    trials: int = 1
    facts: Mapping[str, float] = field(default_factory=dict)
    """Numbers worth knowing. The table adds them up over the cases of a point; of ``largest ...`` it takes that."""


@dataclass(frozen=True)
class Case:
    """Something that is done to klrl, and what must then be true."""

    protocol: str
    """The point, as ``"R7"``."""
    name: str
    """What is done, in words; unique within the point."""
    run: Callable[[Path], Outcome | str | None]
    """Does it in an empty directory: ``None`` if all is well, else what was wrong; an exception is a problem, too."""
    quick: bool = False
    """Whether it belongs to the subset that takes minutes."""
    timeout: float = 120.0
    """Seconds, after which its processes are killed and it has failed."""


def run_all(cases: Sequence[Case], processes: int, keep: Path | None = None) -> Generator[Row]:
    """Every case's row, as they end; ``processes`` cases run at a time, each starts what processes it needs.

    Args:
        cases: what to run.
        processes: how many at a time.
        keep: where the cases' directories stay; by default they are removed.
    """
    root = Path(tempfile.mkdtemp(prefix="klrl-torture-")) if keep is None else keep
    import gymnasium.envs.classic_control  # noqa: F401  # before several threads meet it half imported

    pool = ThreadPoolExecutor(processes)
    running: list[list[Watched]] = []
    try:
        folders = [root / f"{i:03d}-{_folder(case)}" for i, case in enumerate(cases)]
        for done in as_completed([pool.submit(_run, *one, running) for one in zip(cases, folders, strict=True)]):
            yield done.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for started in running:
            _end(started)
        if keep is None:
            shutil.rmtree(root, ignore_errors=True)


def _folder(case: Case) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "_", f"{case.protocol} {case.name}")[:100]


def _run(case: Case, scratch: Path, running: list[list[Watched]]) -> Row:
    """A thread of its own, which nobody waits for longer than the case may take."""
    scratch.mkdir(parents=True)
    outcomes: list[Outcome] = []
    started: list[Watched] = []
    running.append(started)
    began = time.monotonic()
    thread = threading.Thread(target=_attempt, args=(case, scratch, outcomes, started), daemon=True)
    thread.start()
    thread.join(limit := patient(case.timeout))
    seconds = time.monotonic() - began
    outcome = outcomes[0] if outcomes else Outcome([f"not done after {limit:g} s"])
    _end(started)
    return {
        "protocol": case.protocol,
        "name": case.name,
        "passed": not outcome.problems,
        "trials": outcome.trials,
        "failed": min(len(outcome.problems), outcome.trials),
        "detail": "; ".join(outcome.problems[:3]),
        "seconds": round(seconds, 2),
        "facts": dict(outcome.facts),
    }


def _end(started: list[Watched]) -> None:
    """The last one first: who started it tells of its end."""
    for process in reversed(started):
        with contextlib.suppress(Unexpected):
            process.kill()


def _attempt(case: Case, scratch: Path, outcomes: list[Outcome], started: list[Watched]) -> None:
    try:
        with owned(started):
            result = case.run(scratch)
    except Exception as error:  # whatever it was, the next case is not to suffer from it
        result = one_line(f"{type(error).__name__}: {error}")
    outcomes.append(result if isinstance(result, Outcome) else Outcome([result] if result else []))


def table(rows: Sequence[Row], points: Mapping[str, str]) -> str:
    """A Markdown table with a line per point of the protocol; ``points`` says in words what each is about."""
    lines = ["| point | what is done | passed | seconds | remarks |", "|---|---|---|---|---|"]
    for point in (p for p in points if any(row["protocol"] == p for row in rows)):
        mine = [row for row in rows if row["protocol"] == point]
        trials = sum(row["trials"] for row in mine)
        passed = trials - sum(row["failed"] for row in mine)
        seconds = sum(row["seconds"] for row in mine)
        cells = [point, points[point], f"{passed}/{trials}", f"{seconds:.0f}", "; ".join(_remarks(mine))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _remarks(rows: Sequence[Row]) -> Iterator[str]:
    facts: dict[str, float] = {}
    for name, value in (item for row in rows for item in row["facts"].items()):
        before = facts.get(name, 0.0)
        facts[name] = max(before, value) if name.startswith("largest ") else before + value
    yield from (f"{name}: {value:,.4g}" if value % 1 else f"{name}: {value:,.0f}" for name, value in facts.items())
    failed = [row for row in rows if not row["passed"]]
    yield from (cell(f"FAILED {row['name']}: {row['detail'][:200]}") for row in failed[:3])
    if len(failed) > 3:
        yield f"and {len(failed) - 3} more"
