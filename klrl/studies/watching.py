"""Progress of a study, from what is in its directory: whoever makes the runs, on whatever machine."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from klrl.studies.claims import is_claimed
from klrl.studies.outcomes import DONE, FAILED, read_outcome
from klrl.studies.trials import Trial

Status = Literal["waiting", "running", "done", "failed"]
_TAIL = 2**14
"""Bytes at the end of metrics.csv that hold at least one row."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a study."""

    done: int
    failed: int
    running: tuple[tuple[str, int, int], ...]
    """Name, steps so far and all steps of every run that is being made, here or elsewhere."""
    total: int
    """Number of runs."""
    steps: int
    """Steps so far, over all runs."""
    total_timesteps: int
    """Steps of all runs but those that failed."""
    steps_per_second: float
    """Over all runs, since the call began."""

    @property
    def seconds_left(self) -> float:
        """Seconds left at this speed; infinite before there is one."""
        left = self.total_timesteps - self.steps
        return left / self.steps_per_second if self.steps_per_second > 0 else float("inf")


class Watch:
    """Looks at the runs of a study again and again.

    Args:
        trials: the runs.
        runs: the folder of their directories.
    """

    def __init__(self, trials: Sequence[Trial], runs: Path) -> None:
        self._trials = [(trial, trial.directory(runs)) for trial in trials]
        self._done: set[str] = set()
        self._began, self._first = time.monotonic(), 0
        self._first = self.now().steps

    def now(self) -> Progress:
        """Return how far the study is now."""
        status = {trial.name: self._status(trial, directory) for trial, directory in self._trials}
        steps = {trial.name: self._steps(trial, directory) for trial, directory in self._trials}
        left = [trial for trial, _ in self._trials if status[trial.name] != FAILED]
        so_far = sum(steps[trial.name] for trial in left)
        running = [trial for trial in left if status[trial.name] == "running"]
        return Progress(
            done=len(self._done),
            failed=len(self._trials) - len(left),
            running=tuple((trial.name, steps[trial.name], trial.total_timesteps) for trial in running),
            total=len(self._trials),
            steps=so_far,
            total_timesteps=sum(trial.total_timesteps for trial in left),
            steps_per_second=max(0, so_far - self._first) / max(1e-9, time.monotonic() - self._began),
        )

    def _status(self, trial: Trial, directory: Path) -> str:
        status = DONE if trial.name in self._done else status_of(directory)
        if status == DONE:
            self._done.add(trial.name)
        return status

    def _steps(self, trial: Trial, directory: Path) -> int:
        if trial.name in self._done:
            return trial.total_timesteps
        return min(steps_so_far(directory), trial.total_timesteps)


def status_of(directory: Path) -> Status:
    """Return what is becoming of a run."""
    try:
        row = read_outcome(directory)
    except ValueError:  # not as it was written: the run is evaluated again
        row = None
    if row is not None:
        return row["status"]
    return "running" if is_claimed(directory) else "waiting"


def steps_so_far(directory: Path) -> int:
    """Return the steps in the last row of a run's ``metrics.csv``; 0 before there is one."""
    try:
        with (directory / "metrics.csv").open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            whole = file.read().rpartition(b"\n")[0]
        last = whole.rpartition(b"\n")[2]
        return int(float(last.partition(b",")[0]))
    except (OSError, ValueError):  # no row so far
        return 0
