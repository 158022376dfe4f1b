"""Ended runs of a study, from one directory or several machines', in one small file: ``klrl benchmark gather``."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from klrl.output import as_program
from klrl.scripts.cli.command_line import bad_input, parse
from klrl.scripts.cli.terminal import PlainConsole

PROG = "klrl benchmark gather"


@dataclass(frozen=True, kw_only=True)
class Gather:
    """Write the results and learning curves of the runs that have ended, of a study that need not have, into one file.

    Runs that are in OUTPUT already stay there, so that other seeds may come later, from other machines. Runs with other
    settings than those of their name are refused.
    """

    sources: tyro.conf.Positional[tuple[Path, ...]]
    """Directories of studies, their results.json, or files that this command wrote."""
    output: Path
    """File for the record (JSON)."""


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl benchmark gather``."""
    words = sys.argv[1:] if argv is None else argv
    args = parse(Gather, words, PROG)
    from klrl.studies.gathered import gather, text
    from klrl.studies.report import table
    from klrl.studies.results import claim, write

    console = PlainConsole()
    with bad_input(PROG):
        if not args.sources:
            raise ValueError("sources = (); allowed: directories of studies, or records")
        args.output.parent.mkdir(parents=True, exist_ok=True)
        claim(args.output)
        rows = gather([*([args.output] if args.output.exists() else []), *args.sources])
        if not rows:
            raise ValueError(f"{args.sources[0]}: no run has ended; allowed: a study with one that has")
        write(args.output, text(f"{PROG} {shlex.join(words)}", rows))
    console.print(table(rows))


if __name__ == "__main__":
    as_program(main)
