"""R13: what a run has written can be cut and damaged, and reads as if it had never been."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

from klrl.run.tensorboard_writer import points
from torture.case import Case, Outcome
from torture.processes import Forks
from torture.runs import Run, at_row, saved, succeed
from torture.states import difference, run_parts

_RUN = Run("ppo", "CartPole-v1", updates=24, every=4)
_CUTS, _FLIPS = 20, 1
Points = dict[str, list[tuple[int, float]]]


def cases(seed: int) -> list[Case]:
    """Cuts of both kinds of files, and a flipped byte."""
    damages = {"event file cut": (_CUTS, _cut("events.*")), "metrics.csv cut": (_CUTS, _cut("metrics.csv"))}
    damages["byte of an event file flipped"] = (_FLIPS, _flip)
    return [
        Case("R13", name, _damaged(f"{seed} R13 {name}", n, damage), quick=n == _FLIPS, timeout=300.0)
        for name, (n, damage) in damages.items()
    ]


def shown(run_dir: Path) -> Points:
    """What TensorBoard reads, without times."""
    return {tag: values for tag, values in points(run_dir).items() if tag != "time/fps"}


def _cut(pattern: str) -> Callable[[random.Random, Path], None]:
    def damage(g: random.Random, run_dir: Path) -> None:
        (file,) = run_dir.glob(pattern)
        data = file.read_bytes()
        file.write_bytes(data[: g.randrange(len(data))])

    return damage


def _flip(g: random.Random, run_dir: Path) -> None:
    (file,) = run_dir.glob("events.*")
    data = bytearray(file.read_bytes())
    data[g.randrange(len(data) // 2)] ^= 1 << g.randrange(8)
    file.write_bytes(data)


def _damaged(seed: str, n: int, damage: Callable[[random.Random, Path], None]) -> Callable[[Path], Outcome]:
    """One interrupted run, many copies of it, each damaged in its own way and then resumed."""

    def case(scratch: Path) -> Outcome:
        g, interrupted, problems = random.Random(seed), scratch / "interrupted", []
        succeed(_RUN.start(scratch, scratch / "whole"))
        expected, seen = run_parts(scratch / "whole"), shown(scratch / "whole")
        process = _RUN.start(scratch, interrupted)
        process.until(at_row(interrupted, 15))
        process.kill()
        assert saved(interrupted) > 0
        forks = Forks(scratch)
        for i in range(n):
            run_dir = scratch / f"run {i}"
            shutil.copytree(interrupted, run_dir)
            damage(g, run_dir)
            ended = forks.run(["klrl", "resume", run_dir])
            if ended.code != 0:
                problems.append(f"copy {i}: klrl resume ended with {ended.code}: {ended.err[-300:]}")
            elif differs := difference(run_parts(run_dir), expected):
                problems.append(f"copy {i}: {differs}")
            elif shown(run_dir) != seen:
                problems.append(f"copy {i}: TensorBoard shows other points")
        return Outcome(problems, n)

    return case
