"""Steps/s and peak memory at equal work, next to other libraries: ``klrl benchmark speed``."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import tyro

from klrl.output import as_program
from klrl.scripts.benchmarks import images, speed_history
from klrl.scripts.benchmarks.measure import BOUND, LIBRARIES, rates
from klrl.scripts.benchmarks.speed_report import machine, profile_table, summarise, table
from klrl.scripts.benchmarks.speed_variants import VARIANTS
from klrl.scripts.benchmarks.speed_variants import Name as VariantName
from klrl.scripts.benchmarks.workload import Job, Workload
from klrl.scripts.cli.command_line import bad_input, ended_early, fail, going_on, parse
from klrl.scripts.cli.terminal import PlainConsole
from klrl.validation import Positive, PositiveInt, validate

if TYPE_CHECKING:
    from klrl.studies.work import Work

Peer = Literal["stable-baselines3", "sb3-contrib", "sbx", "cleanrl", "tianshou"]
KEY = ("library", "engine", "algorithm", "env", "variant")
PEER_PACKAGES = ("stable-baselines3", "sb3-contrib", "sbx-rl", "jax", "tianshou", "opencv-python-headless")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Measure steps/s of klrl and of other libraries at equal work, each measurement in a process of its own.

    Every repeat measures everything once before the next one begins, one process at a time; libraries that are not
    installed are skipped. The bound is stepping the environments alone, with random actions. Ratios are of CPU time,
    which a busy machine changes little. Prints Markdown, writes JSON.
    """

    envs: tuple[str, ...] = ("HalfCheetah-v4", "CartPole-v1")
    """Gymnasium ids."""
    algorithms: tuple[Literal["ppo", "trpo"], ...] = ("ppo", "trpo")
    """Algorithms to measure."""
    peers: tuple[Peer, ...] = get_args(Peer)
    """Other libraries to measure, if they are installed."""
    engines: tuple[Literal["sync", "envpool"], ...] = ("sync", "envpool")
    """Engines for klrl's environments and the bound's; other libraries' environments are all synchronous."""
    variants: tuple[VariantName, ...] = get_args(VariantName)
    """klrl's own runs to measure beside the usual ones: on numpy where there is native code, with 64 environments in
    EnvPool and the same batch, and two runs at once, their steps/s added and the memory of each."""
    cleanrl: tuple[Path, ...] = ()
    """CleanRL's ppo.py and ppo_continuous_action.py, or one of them; they are run, so name files you trust."""
    repeats: PositiveInt = 5
    """Measurements of everything."""
    workload: tyro.conf.OmitArgPrefixes[Workload] = field(default_factory=Workload)
    timeout: Positive = 600.0
    """Seconds after which a measurement counts as failed."""
    profile: bool = True
    """Report where klrl's own time goes, too, from one more run each."""
    output: Path = Path("speed.json")
    """File for the measurements (JSON)."""
    images: bool = False
    """Measure PPO on images instead, next to Stable-Baselines3 alone: random ones with two networks and with a shared
    one, and Pong (extras atari, envpool). The flags' defaults are other ones then; envs, algorithms, engines and
    variants are not read."""
    quick: bool = False
    """Measure only klrl and, if installed, Stable-Baselines3 and sb3-contrib, with fewer updates; write no JSON, but a
    line with the ratios at the end of scripts/results/speed-history.csv (outside a checkout, of ./speed-history.csv).
    The flags' defaults are other ones then."""

    def __post_init__(self) -> None:
        validate(self)
        if self.images and self.quick:
            raise ValueError("images = True with quick = True; allowed: one of the two")
        for path in (path for path in self.cleanrl if not path.is_file()):
            raise ValueError(f"cleanrl = {path}; allowed: CleanRL's ppo.py and ppo_continuous_action.py")


QUICK = Speed(
    peers=("stable-baselines3", "sb3-contrib"),
    engines=("sync",),
    variants=(),
    repeats=3,
    workload=Workload(updates=4),
    profile=False,
    quick=True,
)
"""Defaults with ``--quick``: two minutes on one core."""


IMAGES = Speed(
    peers=("stable-baselines3",), repeats=3, workload=images.WORK, profile=False, output=Path("speed-images.json"),
    images=True,
)  # fmt: skip
"""Defaults with ``--images``."""


def plan(args: Speed, console: PlainConsole) -> list[Job]:
    """Return the jobs of one repeat, with a line about everything that is skipped.

    Raises:
        ValueError: an unknown environment.
    """
    from klrl.experience.environments import check_id

    if args.images:
        return _of_images(args, console)
    for env in args.envs:
        check_id(env)
    absent = {name: why for name in (BOUND, "klrl", *args.peers) if (why := missing(name, args))}
    engines = [engine for engine in args.engines if engine == "sync" or installed(engine)]
    for name, why in absent.items():
        console.print(f"{name}: {why}; skipped")
    for engine in set(args.engines) - set(engines):
        console.print(f"engine {engine}: {engine} is not installed; skipped")
    usual = [
        _job(name, engine, algorithm, env, args)
        for env in args.envs
        for algorithm in ("", *args.algorithms)
        for name in ((BOUND, "klrl", *args.peers) if not args.quick else ("klrl", *args.peers))
        for engine in engines
        if name not in absent and algorithm in LIBRARIES[name].algorithms and engine in LIBRARIES[name].engines
    ]
    return [*usual, *_varied(usual, args, console)]


def _of_images(args: Speed, console: PlainConsole) -> list[Job]:
    """Return the jobs on images, with a line about what is skipped."""
    peers, games = "stable-baselines3" in args.peers and installed("stable_baselines3"), installed("envpool")
    games = games and installed("ale_py") and installed("cv2")
    for there, what in ((peers, "stable-baselines3"), (games, "Pong, which needs the extras atari and envpool")):
        if not there:
            console.print(f"{what}: not installed; skipped")
    return images.jobs(args.workload, peers, games)


def _varied(usual: Sequence[Job], args: Speed, console: PlainConsole) -> Iterator[Job]:
    """Yield the jobs of the variants, with a line about each that is skipped."""
    for name in args.variants:
        variant = VARIANTS[name]
        if (why := variant.missing(args.workload)) is not None:
            console.print(f"{name}: {why}; skipped")
            continue
        libraries = (BOUND, "klrl") if variant.alone else ("klrl",)
        yield from (variant.change(job) for job in usual if job.engine == variant.engine and job.library in libraries)


def _job(library: str, engine: str, algorithm: str, env: str, args: Speed) -> Job:
    files = tuple(str(path.resolve()) for path in args.cleanrl) if library == "cleanrl" else ()
    work = args.workload
    if library == BOUND:
        work = replace(work, updates=10 * work.updates)  # else it is over too soon to be timed well
    return Job(library=library, engine=engine, algorithm=algorithm, env=env, seed=0, workload=work, files=files)


def missing(name: str, args: Speed) -> str | None:
    """Return why a library cannot be measured, or ``None``."""
    if not installed(package := LIBRARIES[name].package):
        return f"{package} is not installed"
    return "no --cleanrl FILE" if name == "cleanrl" and not args.cleanrl else None


def installed(package: str) -> bool:
    """Return True for a package that can be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def run(job: Job, timeout: float) -> dict[str, Any]:
    """Measure in a fresh process, or in several at once: their steps and CPU times are added, peak memory is of each.

    Raises:
        RuntimeError: a process failed; its last line of output.
    """
    if job.processes == 1:
        return _run(job, timeout)
    with ThreadPoolExecutor(job.processes) as pool:
        places = [replace(job, place=place) for place in range(job.processes)]
        results = list(pool.map(partial(_run, timeout=timeout), places))
    total = {name: sum(result[name] for result in results) for name in ("steps", "cpu_seconds")}
    total |= {name: max(result[name] for result in results) for name in ("seconds", "peak_mib")}
    return total | rates(total)


def _run(job: Job, timeout: float) -> dict[str, Any]:
    """Measure in one process, whose numerical libraries see the number of threads before they are imported."""
    environment = os.environ | dict.fromkeys(THREADS, str(job.workload.threads)) | job.environment
    command = [sys.executable, "-m", "klrl.scripts.benchmarks.measure", json.dumps(asdict(job))]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"not done after {timeout:g} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(lines[-1])
    return json.loads(done.stdout.splitlines()[-1])


class Measurements:
    """Measurements so far, and failures; a failed job is not tried again."""

    def __init__(self, work: Work, console: PlainConsole, timeout: float) -> None:
        self.work, self.console, self.timeout = work, console, timeout
        self._machine = machine()
        self.rows: list[dict[str, Any]] = []
        self.failed: dict[tuple[str, ...], str] = {}

    def take(self, jobs: list[Job]) -> None:
        """Measure each job once, unless it has failed before."""
        for job in (job for job in jobs if job.key not in self.failed):
            name = " ".join(word for word in job.key if word)
            kind = "profile" if job.profile else f"repeat {job.seed + 1}"
            try:
                of = asdict(job) | {"machine": self._machine}
                result, _ = self.work.once(f"{kind} {name}", of, partial(run, job, self.timeout))
            except RuntimeError as error:
                known = {(*key[:2], why) for key, why in self.failed.items()}
                self.failed[job.key] = str(error)
                if (*job.key[:2], str(error)) not in known:
                    self.console.print(f"{name}: failed: {error}")
                continue
            self.rows.append({name: getattr(job, name) for name in (*KEY, "seed", "profile")} | result)
            speed, cpu, peak = (result[x] for x in ("steps_per_second", "steps_per_cpu_second", "peak_mib"))
            self.console.print(f"{kind}  {name}: {speed:,.0f} steps/s, {cpu:,.0f} per CPU second, {peak:,.0f} MiB")


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl benchmark speed``."""
    words = sys.argv[1:] if argv is None else argv
    prog = "klrl benchmark speed"
    args = parse(Speed, words, prog, QUICK if "--quick" in words else IMAGES if "--images" in words else None)
    from klrl.run.directory import versions
    from klrl.studies.work import Work

    console = PlainConsole()
    if args.quick:
        _quick(args, console, prog)
        return
    with bad_input(prog):
        jobs = plan(args, console)
        work = Work(args.output, " ".join([prog, *words]), versions(PEER_PACKAGES), console.print)
        work.claim()
    with going_on(prog, work.folder):
        record = work.finished() or work.save(_measured(args, jobs, work, console))
    console.print(report(record))


def _quick(args: Speed, console: PlainConsole, prog: str) -> None:
    """Measure, and add a line to the history."""
    from klrl.studies.work import Work

    with bad_input(prog):
        path, jobs = speed_history.file(), plan(args, console)
    with tempfile.TemporaryDirectory() as folder, ended_early(prog):
        work = Work(Path(folder) / "speed.json", prog, {}, console.print)
        record = json.loads(_measured(args, jobs, work, console))
    console.print(report(record))
    with bad_input(prog):
        speed_history.append(speed_history.line(record), path)
    console.print(f"\nadded to {path}")


def _measured(args: Speed, jobs: Sequence[Job], work: Work, console: PlainConsole) -> str:
    """Return all measurements as JSON."""
    measurements = Measurements(work, console, args.timeout)
    for repeat in range(args.repeats):
        measurements.take([replace(job, seed=repeat) for job in jobs])
    if args.profile:
        measurements.take([replace(job, profile=True) for job in jobs if job.library == "klrl" and not job.variant])
    timed = [row for row in measurements.rows if not row["profile"]]
    if not timed:
        fail("klrl benchmark speed", "nothing could be measured", status=1)
    record = {
        "command": work.command,
        "versions": work.versions,
        "machine": machine(),
        "workload": asdict(args.workload),
        "measurements": measurements.rows,
        "failed": [dict(zip(KEY, key, strict=True)) | {"error": error} for key, error in measurements.failed.items()],
        "summary": images.summarise(timed) if args.images else summarise(timed),
    }
    return json.dumps(record, indent=1) + "\n"


def report(record: dict[str, Any]) -> str:
    """Return the tables, and what is not equal work."""
    if "what" in record["summary"][0]:
        return f"\n{images.table(record['summary'])}"
    names = dict.fromkeys(row["library"] for row in record["summary"])
    notes = [f"{name}: {LIBRARIES[name].differs}" for name in names if LIBRARIES[name].differs]
    parts = ["", table(record["summary"]), *notes]
    if profiles := [row for row in record["measurements"] if row["profile"]]:
        parts += ["Where klrl's time goes:", profile_table(profiles)]
    return "\n\n".join(parts)


if __name__ == "__main__":
    as_program(main)
