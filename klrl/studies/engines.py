"""Engines: what makes the runs of a study, in this process or in others."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal, Protocol, Self, get_args

from klrl.run.signals import Interrupted, Signals
from klrl.studies.parallel import RETRIES, Ended, Pool
from klrl.studies.results import Row
from klrl.studies.training import run
from klrl.studies.trials import Trial

EngineName = Literal["processes", "ray"]


class Engine(Protocol):
    """Makes runs; as a context, it ends those that have not ended."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    @property
    def busy(self) -> int:
        """Number of runs that have not ended."""

    @property
    def free(self) -> int:
        """Number of runs that can begin now."""

    def start(self, trial: Trial, directory: Path, token: str, taken: bool) -> None:
        """Begin a run, or go on with it.

        Args:
            trial: the run.
            directory: its run directory.
            token: what the file of its claim has in it.
            taken: see :func:`klrl.studies.training.run`.
        """

    def wait(self, timeout: float | None) -> list[Ended]:
        """Return the runs that have ended, under their names, once there is one or after so many seconds."""


class InThisProcess:
    """Makes one run after the other in the process that calls; if that is killed, so is the study."""

    def __init__(self) -> None:
        self._next: list[tuple[Trial, Path, bool]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    @property
    def busy(self) -> int:
        """1 if there is a run to make."""
        return len(self._next)

    @property
    def free(self) -> int:
        """1 if there is none."""
        return 1 - len(self._next)

    def start(self, trial: Trial, directory: Path, token: str, taken: bool) -> None:
        """Remember the run."""
        self._next.append((trial, directory, taken))

    def wait(self, timeout: float | None) -> list[Ended]:
        """Make the run."""
        if not self._next:
            return []
        trial, directory, taken = self._next.pop()
        return [Ended(trial.name, run(trial, directory, taken=taken))]


class Processes:
    """Makes several runs at a time in processes of this machine, which are replaced when they are killed.

    Args:
        processes: number of runs at a time.
    """

    def __init__(self, processes: int) -> None:
        self._pool = Pool(processes)

    def __enter__(self) -> Self:
        self._pool.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._pool.__exit__(*error)

    @property
    def busy(self) -> int:
        """Number of runs that have not ended."""
        return self._pool.busy

    @property
    def free(self) -> int:
        """Number of runs that can begin now."""
        return self._pool.free

    def start(self, trial: Trial, directory: Path, token: str, taken: bool) -> None:
        """Begin a run in a free process."""
        self._pool.start(trial.name, _until_a_signal, trial, directory, taken)

    def wait(self, timeout: float | None) -> list[Ended]:
        """Return the runs that have ended."""
        return self._pool.wait(timeout)


def _until_a_signal(trial: Trial, directory: Path, taken: bool) -> Row:
    """Make a run in a process of its own; SIGTERM ends it with its last whole update saved."""
    try:
        with Signals() as signals:
            return run(trial, directory, signals, taken=taken)
    except Interrupted as signal:
        sys.exit(128 + signal.number)


def make_engine(
    name: EngineName,
    *,
    processes: int = 2,
    retries: int = RETRIES,
    ranks_per_run: int = 1,
    cpus_per_run: float | None = None,
    gpus_per_run: float = 0.0,
    address: str | None = None,
) -> Engine:
    """Return an engine by its name.

    Args:
        name: processes of this machine, or tasks of Ray (extra ``ray``).
        processes: runs at a time, for "processes"; a single one is made in this process.
        retries: how often Ray itself begins a task again.
        ranks_per_run: processes of each run, for Ray: ranks, which share its environments.
        cpus_per_run: CPUs of each run, for Ray, by default one for each of its ranks.
        gpus_per_run: GPUs of each run, for Ray.
        address: Ray's cluster, "auto" or host:port; by default one on this machine, begun now.

    Raises:
        ValueError: an argument out of range, no Ray, or a cluster that cannot be reached or lacks what a run needs.
    """
    if name not in get_args(EngineName):
        raise ValueError(f"engine = {name!r}; allowed: {', '.join(get_args(EngineName))}")
    for what, value, least in (
        ("processes", processes, 1),
        ("retries", retries, 0),
        ("ranks_per_run", ranks_per_run, 1),
    ):
        if value < least:
            raise ValueError(f"{what} = {value}; allowed: an integer >= {least}")
    if name == "processes":
        if ranks_per_run > 1:
            raise ValueError(f"ranks_per_run = {ranks_per_run} with engine = 'processes'; allowed: with 'ray'")
        return InThisProcess() if processes == 1 else Processes(processes)
    from klrl.studies.on_ray import OnRay

    return OnRay(
        address, ranks_per_run=ranks_per_run, cpus_per_run=cpus_per_run, gpus_per_run=gpus_per_run, retries=retries
    )
