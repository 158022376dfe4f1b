"""Make the KL divergence visible: figures, numbers and checked identities, ``klrl explore-kl``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from klrl.output import as_program
from klrl.scripts.benchmarks.speed import installed
from klrl.scripts.cli.command_line import bad_input, fail, parse
from klrl.scripts.cli.terminal import PlainConsole
from klrl.validation import NonNegativeInt

PROG = "klrl explore-kl"


@dataclass(frozen=True, kw_only=True)
class ExploreKL:
    """Show what the KL divergence is: numbered figures, a text that leads through them, a table of all numbers.

    Everything is computed by klrl.kl, and what the theory calls equal is checked. Takes some seconds (extra plots).
    """

    output: Path = Path("explore-kl")
    """New or empty folder for README.md, numbers.csv and the figures."""
    seed: NonNegativeInt = 0
    """Seed of all random numbers."""


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl explore-kl``."""
    args = parse(ExploreKL, sys.argv[1:] if argv is None else argv, PROG)
    import torch

    from klrl.run.directory import check_new
    from klrl.scripts.explore.report import BrokenIdentity, report, write
    from klrl.scripts.explore.sections import LEAD, explore

    with bad_input(PROG):
        if not installed("matplotlib"):
            raise ValueError("the figures need matplotlib: pip install 'klrl[plots]'")
        check_new(args.output, "output").mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    try:
        sections = explore(args.seed)
    except BrokenIdentity as error:
        fail(PROG, error, status=1)
    text = report(sections, LEAD)
    write(sections, text, args.output)
    console = PlainConsole()
    console.print(text)
    console.print(f"written: {args.output}/README.md, numbers.csv and the figures")


if __name__ == "__main__":
    as_program(main)
