"""A figure of runs for a paper: ``klrl plot runs/a runs/b -o figure.pdf``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from klrl.output import as_program
from klrl.scripts.benchmarks.speed import installed
from klrl.scripts.cli.command_line import bad_input, parse
from klrl.text import printable

PROG = "klrl plot"


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Draw metrics of runs with matplotlib (extra plots): below each other, environments beside each other.

    Variants with at least three seeds are drawn as their mean with its 95 % interval.
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, folders of some, such as a study's, and logs of a DriftMonitor."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("figure.png")
    """The file; its end names the format: .png, .svg or .pdf."""
    metrics: tuple[str, ...] = ()
    """Names of columns of metrics.csv, separated by spaces; by default rollout/ep_rew_mean and drift/kl."""
    seeds: tyro.conf.FlagCreatePairsOff[bool] = False
    """Draw every seed."""


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl plot``."""
    args = parse(Plot, sys.argv[1:] if argv is None else argv, PROG)
    with bad_input(PROG):
        if not args.paths:
            raise ValueError("paths missing; for example: klrl plot runs/demo -o figure.png")
        if not installed("matplotlib"):
            raise ValueError("the figure needs matplotlib: pip install 'klrl[plots]'")
        from klrl.report import read_runs
        from klrl.report.figures import figure_of_runs
        from klrl.run.figures import check_format, coded
        from klrl.studies.results import claim, write

        check_format(args.output)
        claim(args.output)
        drawn = figure_of_runs(read_runs(args.paths), args.metrics, seeds=args.seeds)
        write(args.output, coded(drawn, args.output))
    print(printable(f"written: {args.output}"))


if __name__ == "__main__":
    as_program(main)
