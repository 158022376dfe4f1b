"""One HTML file about runs and studies: ``klrl report studies/a -o report.html``."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from klrl.output import as_program
from klrl.scripts.cli.command_line import bad_input, parse
from klrl.text import printable

PROG = "klrl report"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write one HTML file about runs: results with intervals, learning curves, drift against its target, failures.

    Audits of saved policies may stand beside them. The file needs no network, and opens from the disk. Runs that are
    still being written are shown as far as they are.
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, folders of some, such as a study's, logs of a DriftMonitor, and files of klrl audit --json."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("report.html")
    """The file; an older one is replaced."""


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl report``."""
    words = sys.argv[1:] if argv is None else argv
    args = parse(Report, words, PROG)
    from klrl.report import write

    with bad_input(PROG):
        if not args.paths:
            raise ValueError("paths missing; for example: klrl report runs")
        if args.output.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"output = {args.output}; allowed: a name that ends in .html")
        runs = write(args.paths, args.output, command=f"{PROG} {shlex.join(words)}")
    for run in runs:
        for note in run.notes:
            print(printable(f"{run.directory}: {note}"), file=sys.stderr)
    audits = {path.resolve() for path in args.paths if not path.is_dir()}
    counted = ((runs, "run"), (audits, "audit"))
    said = ", ".join(f"{len(all_)} {name}{'s' * (len(all_) != 1)}" for all_, name in counted if all_)
    print(printable(f"written: {args.output}, {said}"))


if __name__ == "__main__":
    as_program(main)
