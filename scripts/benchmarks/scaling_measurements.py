"""Measurements of ``klrl benchmark scaling``: which to take, and which to leave out and why."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from klrl.scripts.benchmarks.speed import run
from klrl.scripts.benchmarks.speed_report import machine
from klrl.scripts.benchmarks.workload import Job
from klrl.scripts.cli.terminal import PlainConsole

if TYPE_CHECKING:
    from klrl.studies.work import Work

Row = dict[str, Any]
Axis = Literal["n_envs", "width", "batch"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of one curve along one axis; curves of several axes may share a job."""

    axis: Axis
    value: int
    curve: str
    job: Job

    def __str__(self) -> str:
        return f"{self.curve}, {self.axis} {self.value:,}"

    @property
    def names(self) -> Row:
        """Values that identify the point in the JSON."""
        return {"axis": self.axis, "value": self.value, "curve": self.curve}

    @property
    def time_unit(self) -> float:
        """Number that grows at least as fast as the time of a measurement along any axis, its constant part apart."""
        work = self.job.workload
        return float(work.total_timesteps * max(work.hidden_sizes) ** 2)

    @property
    def memory_unit(self) -> float:
        """Number that grows at least as fast as peak memory: activations, or parameters if they are more."""
        width = max(self.job.workload.hidden_sizes)
        return float(width * max(width, self.job.workload.steps_per_update))


class Measurements:
    """Measurements so far, and points that were skipped."""

    def __init__(self, work: Work, console: PlainConsole, *, max_mib: float, max_seconds: float) -> None:
        self.work, self.console, self.max_mib, self.max_seconds = work, console, max_mib, max_seconds
        self._machine = machine()
        self.started = time.monotonic()
        self.rows: list[Row] = []
        self.skipped: list[Row] = []
        self._jobs: list[Job] = []

    def of(self, point: Point) -> list[Row]:
        """Return the measurements of a point's job, in the order of the repeats."""
        return [row for row, job in zip(self.rows, self._jobs, strict=True) if job == point.job]

    def take(self, points: Sequence[Point], repeat: int, *, until: float) -> None:
        """Measure each point once more; after the first time only those that end before ``until``, in seconds."""
        left_out = 0
        for point in points:
            before = self.of(point)
            if len(before) > repeat:
                continue  # on another axis
            if repeat == 0:
                self._first(point, points)
            elif len(before) == repeat:
                if time.monotonic() - self.started + before[0]["process_seconds"] > until:
                    left_out += 1
                else:
                    self._measure(point, repeat)
        if left_out:
            self.console.print(
                f"repeat {repeat + 1}: {left_out} points left out, because they would end too late (--minutes)"
            )

    def _first(self, point: Point, points: Sequence[Point]) -> None:
        if why := self._too_large(point, points):
            self._skip(point, why)
        else:
            self._measure(point, 0)

    def _too_large(self, point: Point, points: Sequence[Point]) -> str | None:
        """Return why a point is not measured, judged by the smaller one before it on its curve, or ``None``."""
        smaller = [p for p in points if (p.axis, p.curve) == (point.axis, point.curve) and p.value < point.value]
        if not smaller:
            return None
        last = smaller[-1]
        if not (rows := self.of(last)):
            return f"{last} was not measured"
        mib = rows[0]["peak_mib"] * point.memory_unit / last.memory_unit
        seconds = rows[0]["process_seconds"] * point.time_unit / last.time_unit
        if mib > self.max_mib:
            return f"up to {mib:,.0f} MiB expected, over --max-gib"
        if seconds > self.max_seconds:
            return f"up to {seconds:,.0f} s expected, over --max-seconds"
        return None

    def _measure(self, point: Point, repeat: int) -> None:
        job = replace(point.job, seed=repeat)
        of = asdict(job) | {"machine": self._machine}
        try:
            result, known = self.work.once(f"repeat {repeat + 1} {point}", of, partial(_timed, job, self.max_seconds))
        except RuntimeError as error:
            self._skip(point, str(error))
            return
        if known:
            self.started -= result["process_seconds"]  # an earlier call has spent them
        work = point.job.workload
        row = {name: of[name] for name in ("algorithm", "env", "settings")}
        row |= {name: getattr(work, name) for name in ("n_envs", "n_steps", "hidden_sizes", "updates", "warm_up")}
        self.rows.append(row | {"repeat": repeat} | result)
        self._jobs.append(point.job)
        speed, peak = result["steps_per_second"], result["peak_mib"]
        self.console.print(f"repeat {repeat + 1}  {point}: {speed:,.0f} steps/s, {peak:,.0f} MiB")

    def _skip(self, point: Point, why: str) -> None:
        self.skipped.append(point.names | {"why": why})
        self.console.print(f"{point}: skipped: {why}")


def _timed(job: Job, timeout: float) -> Row:
    """Return a measurement, and how long its process took."""
    started = time.monotonic()
    result = run(job, timeout)
    return {"process_seconds": time.monotonic() - started} | result
