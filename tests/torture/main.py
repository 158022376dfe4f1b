"""The command line of the protocol: ``klrl torture``."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from klrl.scripts.cli.command_line import bad_input, fail, parse
from klrl.scripts.cli.terminal import PlainConsole
from klrl.validation import NonNegativeInt, Positive, PositiveInt
from torture.case import Case, Row, run_all, table
from torture.processes import haste

PROG = "klrl torture"
POINTS = {
    "R1": "kill -9 at random moments of a run, resume, compare with the uninterrupted run",
    "R2": "kill -9 in a loop that only saves",
    "R3": "exact resume, environment by environment",
    "R4": "observations, rewards and actions that are not finite",
    "R5": "workers that die, hang or raise",
    "R6": "a full disk",
    "R7": "damaged checkpoints: cut, flipped, emptied, deleted, mixed",
    "R8": "malicious checkpoints and run directories: code, links, bombs, settings, escapes",
    "R9": "bad settings",
    "R10": "spaces and environments of every kind, misbehaving ones among them",
    "R11": "signals at random moments",
    "R12": "several runs in one directory, stale locks, names given at once",
    "R13": "logs after a crash",
    "R14": "the same run in other processes, directories and workers",
    "R15": "policies without the environment they were trained in",
    "R16": "long runs: memory, open files, shared memory, processes",
    "R17": "clocks that jump",
    "R19": "directories of every kind, and what becomes of them",
    "R20": "studies whose processes are killed again and again, compared with those to which nothing happens",
    "R22": "trainings on several ranks, one of which fails in every way, compared with one to which nothing happens",
}


@dataclass(frozen=True, kw_only=True)
class Torture:
    """Run the protocol of reliability with real processes: kills, damage, malice; JSON and a table of what held."""

    only: tuple[str, ...] = tuple(POINTS)
    """Only these points of the protocol."""
    quick: tyro.conf.FlagCreatePairsOff[bool] = False
    """Only a subset of the cases, which takes three minutes at most."""
    seed: NonNegativeInt = 0
    """Of everything that is random: moments of kills, bytes that flip."""
    processes: PositiveInt = 2
    """Cases at a time; each starts the processes it needs, with one torch thread each."""
    output: Path = Path("torture.json")
    """Where the results go."""
    soak_minutes: Positive = 2.0
    """Of each long run of R16."""
    keep: Path | None = None
    """A new or empty folder for what the cases leave behind; by default it is removed."""


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl torture``: exit status 1 if a case failed."""
    args = parse(Torture, sys.argv[1:] if argv is None else argv, PROG)
    from klrl.run.directory import check_new
    from klrl.studies.results import save
    from torture.known import known

    with bad_input(PROG):
        for unknown in (point for point in args.only if point not in POINTS):
            raise ValueError(f"only = {unknown!r}; allowed: {', '.join(POINTS)}")
        if args.keep is not None:
            check_new(args.keep, "keep")
        if args.output.is_dir() or not os.access(args.output.absolute().parent, os.W_OK):
            raise ValueError(f"output = {args.output}; allowed: a file in a folder that exists")
    cases = [case for case in known(args.seed, args.soak_minutes) if case.protocol in args.only]
    with haste(args.quick):
        rows = _run([case for case in cases if case.quick or not args.quick], args)
    save(_command(args), [row | {"seed": args.seed} for row in rows], args.output)
    print(table(rows, POINTS))
    failed = sum(not row["passed"] for row in rows)
    print(f"{len(rows)} cases, {failed} failed; written: {args.output}")
    sys.exit(1 if failed else 0)


def _run(cases: list[Case], args: Torture) -> list[Row]:
    """The rows in the order of the cases, with a line on each as it ends."""
    console = PlainConsole()
    rows: list[Row] = []
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # and not without killing the others
    try:
        with contextlib.closing(run_all(cases, args.processes, args.keep)) as results:
            for row in results:
                rows.append(row)
                verdict = "passed" if row["passed"] else f"FAILED: {row['detail']}"
                console.print(
                    f"{len(rows)}/{len(cases)}  {row['protocol']} {row['name']}: {verdict} ({row['seconds']:.1f} s)"
                )
    except KeyboardInterrupt:
        fail(PROG, "interrupted", status=130)
    order = {(case.protocol, case.name): i for i, case in enumerate(cases)}
    return sorted(rows, key=lambda row: order[row["protocol"], row["name"]])


def _command(args: Torture) -> str:
    """What to type to get these results, without the places of files on this machine."""
    words = [PROG, *(["--quick"] if args.quick else []), f"--seed {args.seed} --processes {args.processes}"]
    return " ".join([*words, *(["--only", *args.only] if args.only != tuple(POINTS) else [])])
