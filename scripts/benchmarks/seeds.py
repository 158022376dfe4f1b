"""Time that many seeds take, some at a time, beside one run of Stable-Baselines3: ``klrl benchmark seeds``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal

from klrl.output import as_program
from klrl.scripts.benchmarks import speed
from klrl.scripts.benchmarks.speed_report import machine
from klrl.scripts.benchmarks.workload import Job, Workload
from klrl.scripts.cli.command_line import bad_input, going_on, parse
from klrl.scripts.cli.terminal import PlainConsole
from klrl.validation import PositiveInt, validate

if TYPE_CHECKING:
    from klrl.studies.results import Row
    from klrl.studies.work import Work

PROG = "klrl benchmark seeds"
PEER = "stable-baselines3"


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """Train PPO with many seeds, some at a time, and Stable-Baselines3's PPO with one; compare how long each takes.

    Every run is a process of its own with one thread, and starting it counts. All get the settings of klrl benchmark
    speed; Stable-Baselines3 steps the environments in Gymnasium, as it does.
    """

    env: str = "HalfCheetah-v4"
    """Gymnasium id."""
    engine: Literal["sync", "envpool"] = "envpool"
    """Engine of klrl's environments."""
    total_timesteps: PositiveInt = 1_000_000
    """Environment steps of every run."""
    seeds: PositiveInt = 10
    """Number of klrl's runs, with seeds from 0."""
    processes: tuple[PositiveInt, ...] = (2,)
    """Runs at a time; with several numbers all runs are made once for each."""
    peer: bool = True
    """Time one run of Stable-Baselines3, too, if it is installed."""
    timeout: PositiveInt = 7_200
    """Seconds after which a run counts as failed."""
    output: Path = Path("seeds.json")
    """File for the measurements (JSON)."""

    def __post_init__(self) -> None:
        validate(self)
        if self.total_timesteps < 2 * (least := Workload().steps_per_update):
            raise ValueError(f"total_timesteps = {self.total_timesteps}; allowed: at least {2 * least}, two updates")

    def job(self, library: str, engine: str) -> Job:
        """Return the work of one run, in whole updates as klrl train rounds them up."""
        updates = -(-self.total_timesteps // Workload().steps_per_update)
        work = Workload(updates=updates - 1)
        return Job(library=library, engine=engine, algorithm="ppo", env=self.env, seed=0, workload=work)


def at_a_time(job: Job, seeds: int, processes: int, timeout: float) -> Row:
    """Make the runs of all seeds, each on a core of its own; return their times and the peak memory of one.

    Raises:
        RuntimeError: a run failed; its last line of output.
    """
    cores: SimpleQueue[int] = SimpleQueue()
    for place in range(processes):
        cores.put(place)

    def one(seed: int) -> Row:
        place = cores.get()
        try:
            return speed.run(replace(job, seed=seed, place=place), timeout)
        finally:
            cores.put(place)

    began = time.perf_counter()
    with ThreadPoolExecutor(processes) as pool:
        results = list(pool.map(one, range(seeds)))
    return {
        "library": job.library,
        "engine": job.engine,
        "runs": seeds,
        "processes": processes,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": sum(result["cpu_seconds"] for result in results),
        "steps": sum(result["steps"] for result in results) + seeds * job.workload.steps_per_update,
        "peak_mib": max(result["peak_mib"] for result in results),
    }


def table(rows: Sequence[Row]) -> str:
    """Return the rows as Markdown, each beside one run of Stable-Baselines3 if that was made."""
    one = next((row for row in rows if row["library"] == PEER), None)
    lines = ["| | runs | at a time | wall time, s | CPU time, s | MiB of a run | of one Stable-Baselines3 run's time |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        share = "" if one is None else f"{row['seconds'] / one['seconds']:.2f}"
        name = f"{row['library']}, {row['engine']}"
        numbers = f"{row['seconds']:,.0f} | {row['cpu_seconds']:,.0f} | {row['peak_mib']:,.0f} | {share}"
        lines.append(f"| {name} | {row['runs']} | {row['processes']} | {numbers} |")
    return "\n".join(lines)


def measured(args: Seeds, work: Work, console: PlainConsole) -> list[Row]:
    """Make all runs that no earlier call has made."""
    of = {"machine": machine()}
    jobs = [(args.job("klrl", args.engine), args.seeds, processes) for processes in args.processes]
    if args.peer and speed.installed("stable_baselines3"):
        jobs.append((args.job(PEER, "sync"), 1, 1))
    rows = []
    for job, seeds, processes in jobs:
        do = partial(at_a_time, job, seeds, processes, float(args.timeout))
        name = f"{job.library} {seeds} runs {processes} at a time"
        row, _ = work.once(name, of | asdict(job) | {"seeds": seeds, "at_a_time": processes}, do)
        console.print(f"{name}: {row['seconds']:,.0f} s, {row['cpu_seconds']:,.0f} CPU s")
        rows.append(row)
    return rows


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl benchmark seeds``."""
    words = sys.argv[1:] if argv is None else argv
    args = parse(Seeds, words, PROG)
    from klrl.experience.environments import check_id
    from klrl.run.directory import versions
    from klrl.studies.work import Work

    console = PlainConsole()
    work = Work(args.output, " ".join([PROG, *words]), versions(speed.PEER_PACKAGES), console.print)
    with bad_input(PROG):
        check_id(args.env)
        work.claim()
    with going_on(PROG, work.folder):
        if (record := work.finished()) is None:
            found: dict[str, Any] = {"command": work.command, "versions": work.versions, "machine": machine()}
            record = work.save(json.dumps(found | {"rows": measured(args, work, console)}, indent=1) + "\n")
    console.print(table(record["rows"]))


if __name__ == "__main__":
    as_program(main)
