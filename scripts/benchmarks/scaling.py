"""Cost per environment step against environments, network width and batch: ``klrl benchmark scaling``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import tyro

from klrl.output import as_program
from klrl.scripts.benchmarks.scaling_measurements import Axis, Measurements, Point
from klrl.scripts.benchmarks.scaling_report import summarise, table
from klrl.scripts.benchmarks.speed import installed
from klrl.scripts.benchmarks.speed_report import machine
from klrl.scripts.benchmarks.workload import Job, Workload
from klrl.scripts.cli.command_line import bad_input, fail, going_on, parse
from klrl.scripts.cli.terminal import PlainConsole
from klrl.validation import Positive, PositiveInt, validate

if TYPE_CHECKING:
    from klrl.studies.work import Work

PROG = "klrl benchmark scaling"
FISHER_VARIANTS = {
    "trpo, every 5th state": {"sub_sampling_factor": 5},
    "trpo, 2,048 states at a time": {"fisher_batch_size": 2048},
}
"""Other ways to TRPO's Fisher products, by the name of their curve on the batch axis."""


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Measure what a step of klrl costs against the number of environments, the width of the networks and the batch.

    Along an axis all other settings are the workload's, minibatches included; along n_envs the batch is fixed, too, so
    that n_steps shrinks. On the axis of batches, TRPO is measured with several implementations of its Fisher products.
    Every measurement is a process of its own with klrl's timers on, one at a time; every repeat measures everything
    once before the next one begins. Writes JSON, and one PNG per axis beside it (extra plots).
    """

    env: str = "CartPole-v1"
    """Gymnasium id; CartPole steps so fast that klrl's own cost shows, HalfCheetah-v4 is a usual one."""
    algorithms: tuple[Literal["ppo", "trpo"], ...] = ("ppo", "trpo")
    """Algorithms to measure."""
    axes: tuple[Axis, ...] = get_args(Axis)
    """Axes to vary."""
    env_counts: tuple[PositiveInt, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """Numbers of environments; divisors of n_envs * n_steps."""
    widths: tuple[PositiveInt, ...] = (64, 128, 256, 512, 1024)
    """Widths of every hidden layer of the policy and of the critic."""
    batches: tuple[PositiveInt, ...] = (2048, 4096, 8192, 16384, 32768, 65536, 131072)
    """Samples per update; multiples of n_envs and of the minibatch sizes."""
    repeats: PositiveInt = 3
    """Measurements of every point, as far as the minutes allow."""
    minutes: Positive = 10.0
    """Minutes after which no repeat may end; every point is measured once, however long that takes."""
    workload: tyro.conf.OmitArgPrefixes[Workload] = field(default_factory=Workload)
    timed_steps: PositiveInt = 8192
    """Most timed environment steps: fewer updates than --updates are timed, at least one, if they would need more. A
    step with networks k times as wide as the workload's counts as k."""
    max_gib: Positive = 4.0
    """Largest peak memory, GiB: points for which the smaller point before them predicts more are skipped."""
    max_seconds: Positive = 120.0
    """Longest measurement, which is also ended then: points for which the smaller point before them predicts more are
    skipped."""
    output: Path = Path("scaling.json")
    """File for the measurements (JSON); the figures get the axis added to this name."""

    def __post_init__(self) -> None:
        from klrl.experience.environments import check_id

        validate(self)
        check_id(self.env)
        for name in ("algorithms", "axes", "env_counts", "widths", "batches"):
            if list(values := getattr(self, name)) != list(dict.fromkeys(values)) or not values:
                raise ValueError(f"{name} = {values}; allowed: one or more, each once")
        if not self.workload.hidden_sizes:
            raise ValueError("hidden_sizes = (); allowed: one or more")
        plan(self)


def plan(args: Scaling) -> list[Point]:
    """Return every point, along each axis from the smallest.

    Raises:
        ValueError: the workload cannot take a value.
    """
    values: dict[Axis, tuple[int, ...]] = {"n_envs": args.env_counts, "width": args.widths, "batch": args.batches}
    return [
        Point(axis=axis, value=value, curve=curve, job=_job(args, algorithm, workload_at(args, axis, value), settings))
        for axis in args.axes
        for value in sorted(values[axis])
        for algorithm in args.algorithms
        for curve, settings in curves(algorithm, axis).items()
    ]


def curves(algorithm: str, axis: Axis) -> dict[str, dict[str, int]]:
    """Return the curves of an algorithm along an axis, and what each sets in its configuration."""
    return {algorithm: {}} | (FISHER_VARIANTS if (algorithm, axis) == ("trpo", "batch") else {})


def workload_at(args: Scaling, axis: Axis, value: int) -> Workload:
    """Return the workload with one thing changed, and fewer updates if they are long."""
    base = args.workload
    match axis:
        case "n_envs":
            if (whole := base.steps_per_update) % value:
                raise ValueError(f"env_counts = {args.env_counts}; allowed: divisors of n_envs * n_steps = {whole}")
            work = replace(base, n_envs=value, n_steps=whole // value)
        case "width":
            work = replace(base, hidden_sizes=(value,) * len(base.hidden_sizes))
        case "batch":
            if value % base.n_envs:
                raise ValueError(f"batches = {args.batches}; allowed: multiples of n_envs = {base.n_envs}")
            work = replace(base, n_steps=value // base.n_envs)
    wider = max(1.0, max(work.hidden_sizes) / max(base.hidden_sizes))
    updates = int(args.timed_steps / (work.steps_per_update * wider))
    return replace(work, updates=min(work.updates, max(1, updates)))


def _job(args: Scaling, algorithm: str, work: Workload, settings: dict[str, int]) -> Job:
    return Job(
        library="klrl",
        engine="sync",
        algorithm=algorithm,
        env=args.env,
        seed=0,
        workload=work,
        profile=True,
        settings=settings,
    )


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl benchmark scaling``."""
    words = sys.argv[1:] if argv is None else argv
    args = parse(Scaling, words, PROG)
    from klrl.run.directory import versions
    from klrl.studies.work import Work

    with bad_input(PROG):
        if not installed("matplotlib"):
            raise ValueError("the figures need matplotlib: pip install 'klrl[plots]'")
        console = PlainConsole()
        work = Work(args.output, " ".join([PROG, *words]), versions(["matplotlib"]), console.print)
        work.claim()
    from klrl.scripts.benchmarks.scaling_figures import save

    with going_on(PROG, work.folder):
        record = work.finished() or work.save(_measured(args, work, console))
        console.print("", table(record["summary"]), "", sep="\n")
        for path in save(record, args.output):
            console.print(path)


def _measured(args: Scaling, work: Work, console: PlainConsole) -> str:
    """Return all measurements as JSON."""
    points = plan(args)
    measurements = Measurements(work, console, max_mib=1024.0 * args.max_gib, max_seconds=args.max_seconds)
    for repeat in range(args.repeats):
        measurements.take(points, repeat, until=60.0 * args.minutes)
    if not measurements.rows:
        fail(PROG, "nothing could be measured", status=1)
    record: dict[str, Any] = {
        "command": work.command,
        "versions": work.versions,
        "machine": machine(),
        "workload": asdict(args.workload),
        "env": args.env,
        "measurements": measurements.rows,
        "skipped": measurements.skipped,
        "summary": summarise((point, measurements.of(point)) for point in points),
    }
    return json.dumps(record, indent=1) + "\n"


if __name__ == "__main__":
    as_program(main)
