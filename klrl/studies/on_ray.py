"""Runs as tasks of Ray, which schedules them, begins them again after a crash, and places them by what they need.

Where a task sees the study's disk, its run directory is there. Where it does not, it trains in a folder of its own, and
its files go, at every checkpoint, to an actor beside the process that called, which writes them to the study's disk; a
task that is begun again gets them back from there.

A run on several ranks is a placement group of Ray with a task for each: all of them have room, or none begins.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from klrl.run.torchrun import RankFailed
from klrl.run.world import World
from klrl.studies.claims import claim_file
from klrl.studies.cluster import check_room, connected
from klrl.studies.keeper import Keeper, Sending
from klrl.studies.outcomes import FAILED
from klrl.studies.parallel import Ended
from klrl.studies.results import Row
from klrl.studies.training import run
from klrl.studies.trials import Trial
from klrl.text import one_line

AHEAD = 2
"""Runs that wait in Ray's queue beyond those that fit now, so that a growing cluster has work."""
GRACE = 10.0
"""Seconds for the other ranks of a run to end after one has."""


@dataclass(eq=False)
class Placed:
    """A run in Ray's hands."""

    name: str
    left: list[Any]
    """Tasks that have not ended, one for each rank; the first one's result is the run's."""
    group: Any = None
    """Placement group of several."""

    def __post_init__(self) -> None:
        self.first = self.left[0]


class OnRay:
    """Makes runs as tasks of Ray.

    Args:
        address: "auto" or host:port of a cluster; ``None`` begins one on this machine, which ends with the study.
        ranks_per_run: processes of each run, which share its environments (:class:`klrl.run.World`).
        cpus_per_run: CPUs of each run, by default one for each of its ranks.
        gpus_per_run: GPUs of each run.
        retries: how often Ray begins a task again whose process or node was lost; runs on several ranks go on as a
            whole, which is the study's to ask for.
        shared_disk: whether tasks look for the study's disk; ``False`` sends all files through the actor.

    Raises:
        ValueError: Ray is not installed, the cluster cannot be reached, or no nodes of it have what a run needs.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        ranks_per_run: int = 1,
        cpus_per_run: float | None = None,
        gpus_per_run: float = 0.0,
        retries: int = 3,
        shared_disk: bool = True,
    ) -> None:
        self.ranks_per_run, self._shared_disk = ranks_per_run, shared_disk
        needs = {"CPU": cpus_per_run or ranks_per_run, "GPU": gpus_per_run}
        self._needs = {name: need / ranks_per_run for name, need in needs.items() if need > 0}
        self._ray = connected(address)
        try:
            check_room(self._ray, self._needs, ranks_per_run)
        except ValueError:
            self._ray.shutdown()
            raise
        options = {"num_cpus": self._needs["CPU"], "num_gpus": self._needs.get("GPU", 0)}
        self._task = self._ray.remote(**options, max_retries=retries)(_task)
        self._rank = self._ray.remote(**options, max_retries=0, max_calls=1)(_rank)  # a process is in one world only
        self._meeting_place = self._ray.remote(num_cpus=0)(_meeting_place)
        here = self._ray.get_runtime_context().get_node_id()
        beside = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        self._keeper = self._ray.remote(num_cpus=0, scheduling_strategy=beside)(Keeper).remote()
        self._runs: list[Placed] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for placed in self._runs:
            self._cancel(placed.left)
        self._ray.shutdown()

    @property
    def busy(self) -> int:
        """Number of runs that have not ended."""
        return len(self._runs)

    @property
    def free(self) -> int:
        """Number of runs that can begin now."""
        there = self._ray.cluster_resources()
        fit = min(there.get(name, 0.0) / need for name, need in self._needs.items()) / self.ranks_per_run
        return int(fit) + AHEAD - len(self._runs)

    def start(self, trial: Trial, directory: Path, token: str, taken: bool) -> None:
        """Give Ray the run.

        Raises:
            ValueError: it has fewer environments than ranks.
        """
        trial.check_ranks(self.ranks_per_run)
        token = token if self._shared_disk else "no disk is shared"
        call = trial, directory.absolute(), token, taken, self._keeper
        if self.ranks_per_run == 1:
            self._runs.append(Placed(trial.name, [self._task.options(name=trial.name).remote(*call)]))
            return
        group = self._ray.util.placement_group([self._needs] * self.ranks_per_run)
        strategy = self._ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        places = [strategy(group, placement_group_bundle_index=rank) for rank in range(self.ranks_per_run)]
        where = self._meeting_place.options(scheduling_strategy=places[0]).remote()
        tasks = [
            self._rank.options(name=f"{trial.name} rank {rank}", scheduling_strategy=place).remote(
                rank, self.ranks_per_run, where, *call
            )
            for rank, place in enumerate(places)
        ]
        self._runs.append(Placed(trial.name, tasks, group))

    def wait(self, timeout: float | None) -> list[Ended]:
        """Return the runs that have ended."""
        runs = {task: placed for placed in self._runs for task in placed.left}
        if not runs:
            return []
        done, _ = self._ray.wait([*runs], num_returns=1, timeout=timeout)
        return [end for task in done if (end := self._run_ended(runs[task], task)) is not None]

    def _run_ended(self, placed: Placed, task: Any) -> Ended | None:
        """Return how a run ended, given a task of it that has; ``None`` if it goes on: another rank's is over."""
        end = self._ended(task, placed.name)
        placed.left.remove(task)
        if task != placed.first and end.result is not None:
            return None
        if end.result is not None and end.result["status"] == FAILED:  # because a rank was lost?
            for other in self._over(placed):
                placed.left.remove(other)
                if (lost := self._ended(other, placed.name)).death is not None:
                    end = lost
        self._cancel(placed.left)
        self._over(placed)  # nobody writes to the run's directory any more
        if placed.group is not None:
            self._ray.util.remove_placement_group(placed.group)
        self._runs.remove(placed)
        return end

    def _over(self, placed: Placed) -> list[Any]:
        """Return which of a run's tasks end within a moment."""
        left = placed.left
        return self._ray.wait(left, num_returns=len(left), timeout=GRACE)[0] if left else []

    def _cancel(self, tasks: list[Any]) -> None:
        for task in tasks:
            self._ray.cancel(task, force=True)

    def _ended(self, task: Any, name: str) -> Ended:
        """Return how a task ended, as the end of the run of that name."""
        errors = self._ray.exceptions
        crashes = (
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.OutOfMemoryError,
            errors.OwnerDiedError,
            errors.ObjectLostError,
        )
        try:
            return Ended(name, self._ray.get(task))
        except crashes as error:
            return Ended(name, death=f"Ray lost its process ({type(error).__name__})")
        except errors.RayTaskError as error:
            if isinstance(error.cause, RankFailed):
                return Ended(name, death=one_line(error.cause))
            return Ended(name, error=RuntimeError(one_line(error)[:500]))
        except errors.RayError as error:
            return Ended(name, error=RuntimeError(one_line(error)[:500]))


def _task(trial: Trial, directory: Path, token: str, taken: bool, keeper: Any) -> Row:
    """Make a run, on the study's disk if it is here."""
    with contextlib.suppress(OSError):
        if token in claim_file(directory).read_text():
            return run(trial, directory, taken=taken)
    import ray

    folder = Path(tempfile.mkdtemp(prefix="klrl-"))
    try:
        here = folder / "run"
        for name, data in ray.get(keeper.get.remote(directory)).items():
            (here / name).parent.mkdir(parents=True, exist_ok=True)
            (here / name).write_bytes(data)
        sending = Sending(keeper, here, directory)
        row = run(trial, here, sending)
        if here.exists():
            sending.send(wait=True)
        return row
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _meeting_place() -> tuple[str, int]:
    """Return where a run's ranks meet: the address of this node, and a port that is free there."""
    import ray.util

    node: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    with socket.socket() as some:
        some.bind(("", 0))
        return node, some.getsockname()[1]


def _rank(rank: int, ranks: int, where: tuple[str, int], trial: Trial, directory: Path, *call: Any) -> Row:
    """Take a run's share as one of its ranks; the row of the first one is the run's.

    Raises:
        RankFailed: another rank is lost.
    """
    said = {"RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": where[0], "MASTER_PORT": where[1]}
    os.environ.update({name: str(value) for name, value in said.items()})
    World.current()
    return _task(trial, directory, *call) if rank == 0 else run(trial, directory)
