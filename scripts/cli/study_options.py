"""Flags of the verbs that make many runs (``klrl study``, ``klrl compare``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from klrl.validation import Bounds, NonNegative, NonNegativeInt, Pattern, validate

if TYPE_CHECKING:
    from klrl.studies import Engine

CPUs = Annotated[float, Bounds(0.0, 1024.0, open_below=True)]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Choice of what makes the runs."""

    engine: Literal["processes", "ray"] = "processes"
    """Processes of this machine, or tasks of Ray (pip install 'klrl[ray]')."""
    processes: Annotated[int, Bounds(1, 1024)] = 2
    """Runs at a time, one torch thread each, with processes; one runs in the first process."""
    retries: Annotated[int, Bounds(0, 10**6)] = 3
    """Times that a run whose process was killed goes on from its checkpoint, without a new one in between."""
    task: Annotated[str, Pattern(r"[1-9]\d*/[1-9]\d*", "I/N with 1 <= I <= N")] | None = None
    """Make only the I-th of N parts of the runs, as I/N, for an array of jobs that share the output's disk."""
    ranks_per_run: Annotated[int, Bounds(1, 1024)] = 1
    """Processes of each run, for ray: ranks, which share its environments, CPUs and GPUs."""
    cpus_per_run: CPUs | None = None
    """CPUs of each run, for ray (by default one for each of its ranks)."""
    gpus_per_run: NonNegative = 0.0
    """GPUs of each run, for ray."""
    address: str | None = None
    """Ray's cluster, for ray: auto or HOST:PORT; by default one on this machine, begun for the study."""

    def __post_init__(self) -> None:
        validate(self)

    def part(self) -> tuple[int, int] | None:
        """Return which part of how many.

        Raises:
            ValueError: there is no such part.
        """
        if self.task is None:
            return None
        i, n = map(int, self.task.split("/"))
        if i > n:
            raise ValueError(f"task = {self.task!r}; allowed: I/N with 1 <= I <= N")
        return i, n

    def make(self) -> Engine:
        """Return the engine.

        Raises:
            ValueError: flags of another engine, or it cannot be had.
        """
        from klrl.studies import make_engine

        others = [f"{name} = {value}" for name, value in self._of_ray() if value is not None]
        if self.engine != "ray" and others:
            raise ValueError(f"{others[0]} with engine = {self.engine!r}; allowed: with 'ray'")
        return make_engine(
            self.engine,
            processes=self.processes,
            retries=self.retries,
            ranks_per_run=self.ranks_per_run,
            cpus_per_run=self.cpus_per_run,
            gpus_per_run=self.gpus_per_run,
            address=self.address,
        )

    def _of_ray(self) -> list[tuple[str, object]]:
        return [
            ("address", self.address),
            ("ranks_per_run", None if self.ranks_per_run == 1 else self.ranks_per_run),
            ("cpus_per_run", self.cpus_per_run),
            ("gpus_per_run", self.gpus_per_run or None),
        ]


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Environments and seeds of a study."""

    envs: tuple[str, ...] = ("CartPole-v1:50000", "LunarLander-v3:100000", "Hopper-v4:100000")
    """ID:STEPS ...: environments, with the steps to train on each."""
    seeds: tuple[NonNegativeInt, ...] = (0, 1, 2)
    """Run seeds."""

    def __post_init__(self) -> None:
        validate(self)

    def environments(self) -> dict[str, int]:
        """Return the steps of every environment.

        Raises:
            ValueError: no steps, an unknown environment, or one given twice.
        """
        from klrl.experience.environments import check_id

        if not self.envs:
            raise ValueError("envs = (); allowed: ID:STEPS ...")
        steps: dict[str, int] = {}
        for word in self.envs:
            env, _, number = word.rpartition(":")
            if not env or not number.isdecimal() or int(number) < 1 or env in steps:
                raise ValueError(f"envs = {word!r}; allowed: every environment once, ID:STEPS, as in CartPole-v1:50000")
            check_id(env)
            steps[env] = int(number)
        return steps
