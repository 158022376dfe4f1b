"""Small runs that the protocol's cases interrupt, and what uninterrupted ones come to."""

from __future__ import annotations

import random
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from klrl.run import checkpoint
from torture.processes import Ended, Watched, start_child, start_klrl
from torture.states import difference, run_parts

SMALL = (
    "--preset", "none", "--n-envs", "2", "--n-steps", "64", "--batch-size", "64", "--actor-hidden-sizes", "16",
    "--critic-hidden-sizes", "16", "--eval-episodes", "1",
)  # fmt: skip
"""Settings with which an update takes some twenty milliseconds, and has 128 steps."""
STEPS = 128


@dataclass(frozen=True)
class Run:
    """What ``klrl train`` is to do."""

    agent: str
    env: str
    mode: str = "sync"
    seed: int = 0
    updates: int = 40
    every: int = 8
    """Updates between checkpoints."""
    more: tuple[str, ...] = ()

    def words(self, run_dir: Path) -> list[str | Path]:
        """The command."""
        steps = ("--total-timesteps", f"{self.updates * STEPS}", "--checkpoint-every", f"{self.every * STEPS}")
        what = ("--env", self.env, "--vectorization-mode", self.mode, "--seed", f"{self.seed}")
        return ["train", self.agent, *what, *SMALL, *steps, *self.more, "--run-dir", run_dir]

    def start(self, scratch: Path, run_dir: Path) -> Watched:
        """In a process of its own."""
        return start_klrl(self.words(run_dir), scratch)

    def start_dying(self, scratch: Path, run_dir: Path, instruction: int) -> Watched:
        """The same, killed by itself before the so-manieth instruction of its checkpoints that reaches the disk."""
        return start_child(["die-saving", str(instruction), *self.words(run_dir)], scratch)


@dataclass
class Uninterrupted:
    """Runs that nothing happened to, each made once, when first needed."""

    _parts: dict[Run, dict[str, str]] = field(default_factory=dict)
    _locks: dict[Run, threading.Lock] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def parts(self, run: Run, scratch: Path) -> dict[str, str]:
        """Its digests.

        Raises:
            AssertionError: it failed.
        """
        with self._guard:
            lock = self._locks.setdefault(run, threading.Lock())
        with lock:
            if run not in self._parts:
                run_dir = scratch / f"uninterrupted-{len([*scratch.glob('uninterrupted-*')])}"
                succeed(run.start(scratch, run_dir))
                self._parts[run] = run_parts(run_dir)
        return self._parts[run]


def succeed(process: Watched) -> Ended:
    """Wait for an end that must be a good one.

    Raises:
        AssertionError: it was not.
    """
    ended = process.wait()
    assert ended.code == 0, f"ended with {ended.code}: {ended.err[-300:]}"
    return ended


def written(run_dir: Path) -> int:
    """Rows of ``metrics.csv`` so far."""
    path = run_dir / "metrics.csv"
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0


def saved(run_dir: Path) -> int:
    """Steps of the newest good checkpoint; 0 where there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is not finished, or damaged on purpose
        try:
            return int(checkpoint.read(run_dir)[1]["num_timesteps"])
        except FileNotFoundError:
            return 0


def at_row(run_dir: Path, n: int) -> Callable[[], bool]:
    """Whether so many updates are done."""
    return lambda: written(run_dir) >= n


def finish(run: Run, run_dir: Path, expected: Mapping[str, str] | None, scratch: Path) -> Sequence[str]:
    """Resume to the end; what differs from the uninterrupted run, or was lost beyond the last checkpoint.

    Args:
        run: what is resumed.
        run_dir: its directory.
        expected: the uninterrupted run's digests; ``None`` where numbers may differ, and only all updates must be done.
        scratch: a directory to work in.
    """
    lost = written(run_dir) * STEPS - saved(run_dir)
    problems = []
    if lost > (run.every + 1) * STEPS:
        problems.append(f"{lost} steps lost with a checkpoint every {run.every * STEPS}")
    ended = start_klrl(resumption(run, run_dir), scratch).wait()
    if ended.code != 0:
        return [*problems, f"klrl resume ended with {ended.code}: {ended.err[-300:]}"]
    if (written(run_dir), saved(run_dir)) != (run.updates, run.updates * STEPS):
        problems.append(f"{written(run_dir)} updates written, {saved(run_dir)} steps saved")
    differs = None if expected is None else difference(run_parts(run_dir), dict(expected))
    return [*problems, differs] if differs else problems


def resumption(run: Run, run_dir: Path) -> list[str | Path]:
    """The command that goes on with it."""
    return ["resume", run_dir, *(["--env", run.env] if ":" in run.env else [])]


def moment(g: random.Random, run: Run) -> int:
    """A row of a run, not the last."""
    return g.randrange(1, run.updates - 1)
