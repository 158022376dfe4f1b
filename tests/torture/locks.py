"""R12: one directory, one run."""

from __future__ import annotations

import hashlib
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from klrl.text import one_line
from torture.case import Case, Outcome
from torture.processes import Watched, start_klrl

_TRAIN = ("train", "ppo", "--env", "CartPole-v1", "--n-envs", "2", "--n-steps", "64", "--batch-size", "64",
          "--checkpoint-every", "256", "--eval-episodes", "0")  # fmt: skip
_FOR_EVER = ("--total-timesteps", "100000000")
_SIZES = (2, 6, 6, 6)
"""How many rivals, or kills, there are in each case."""


def cases(seed: int) -> list[Case]:
    """Rivals at random moments, locks of the dead, names for runs without one."""
    rivals = [
        Case("R12", f"{n} rivals for one directory, part {i}", _rivals(f"{seed} R12 {i}", n), quick=i == 0)
        for i, n in enumerate(_SIZES)
    ]
    dead = [
        Case("R12", f"{n} locks of the dead, part {i}", _of_the_dead(f"{seed} R12 dead {i}", n), quick=i == 0)
        for i, n in enumerate(_SIZES)
    ]
    return [*rivals, *dead, Case("R12", "8 runs without a name, started at once", _without_names)]


def _rivals(seed: str, n: int) -> Callable[[Path], Outcome]:
    """Whoever comes second is told who is there, at once, and changes nothing."""

    def run(scratch: Path) -> Outcome:
        g, run_dir = random.Random(seed), scratch / "run"
        first = _running(scratch, run_dir)
        usual = _time_to_refuse(scratch)
        problems, times = [], []
        for i in range(n):
            time.sleep(g.uniform(0.0, 0.5))
            words: list[str | Path] = ["resume", run_dir] if i % 2 else [*_TRAIN, *_FOR_EVER, "--run-dir", run_dir]
            before = _fixed(run_dir)
            ended = start_klrl(words, scratch).wait(60.0)
            times.append(ended.seconds)
            said = one_line(ended.err)
            if ended.code != 2 or len(ended.err.splitlines()) != 1 or f"process {first.pid}" not in said:
                problems.append(f"{words[0]} ended with {ended.code}: {said[-200:]}")
            elif any(_fixed(run_dir).get(name) != digest for name, digest in before.items()):
                problems.append("files of the first run were changed")
            elif not first.running:
                problems.append("the first run has ended")
        first.kill()
        slower = statistics.median(times) - usual
        if slower > 1.0:
            problems.append(f"refused {slower:.1f} s after any other refusal would have come")
        return Outcome(problems, n, {"largest median time to refuse beyond the usual, s": round(slower, 2)})

    return run


def _of_the_dead(seed: str, n: int) -> Callable[[Path], Outcome]:
    """After kill -9 the run can be resumed at once, as often as one likes."""

    def run(scratch: Path) -> Outcome:
        g, run_dir = random.Random(seed), scratch / "run"
        process, problems = _running(scratch, run_dir), []
        for i in range(n):
            time.sleep(g.uniform(0.0, 0.3))
            process.kill()
            rows = _rows(run_dir)
            process = start_klrl(["resume", run_dir], scratch)
            try:
                process.until(lambda rows=rows: _rows(run_dir) > rows)  # type: ignore[misc]
            except Exception as error:
                problems.append(f"kill {i}: {error}")
                break
        process.kill()
        return Outcome(problems, n)

    return run


def _without_names(scratch: Path) -> Outcome:
    """The same agent on the same environment with the same seed in the same second."""
    started = [start_klrl([*_TRAIN, "--total-timesteps", "128"], scratch) for _ in range(8)]
    ended = [process.wait() for process in started]
    problems = [f"ended with {e.code}: {e.err[-200:]}" for e in ended if e.code != 0]
    whole = [path for path in (scratch / "runs").iterdir() if _rows(path) == 1]
    if len(whole) != 8 and not problems:
        problems.append(f"{len(whole)} directories hold one run each")
    return Outcome(problems, 8)


def _running(scratch: Path, run_dir: Path) -> Watched:
    """A run that has written its first checkpoint."""
    process = start_klrl([*_TRAIN, *_FOR_EVER, "--run-dir", run_dir], scratch)
    process.until(lambda: any(run_dir.glob("checkpoints/*/MANIFEST.json")))
    return process


def _time_to_refuse(scratch: Path) -> float:
    """Seconds from the start of a process to its refusal of something that no lock is about."""
    full = scratch / "full"
    full.mkdir()
    (full / "file").touch()
    return start_klrl([*_TRAIN, *_FOR_EVER, "--run-dir", full], scratch).wait(60.0).seconds


def _rows(run_dir: Path) -> int:
    """Of the metrics, the head not counted."""
    path = run_dir / "metrics.csv"
    return path.read_text().count("\n") - 1 if path.exists() else 0


def _fixed(run_dir: Path) -> dict[str, str]:
    """Digests of what the first run itself does not change as it goes on."""
    names = ["config.json", "run.lock"]
    return {
        name: hashlib.sha256((run_dir / name).read_bytes()).hexdigest() for name in names if (run_dir / name).exists()
    }
