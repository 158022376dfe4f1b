"""Make the KL divergence visible: figures, numbers and checked identities, ``klrl explore-kl``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from klrl.output import as_program
from klrl.run.directory import check_new
from klrl.scripts.benchmarks.speed import installed
from klrl.scripts.cli.command_line import bad_input, fail, parse
from klrl.scripts.cli.terminal import PlainConsole
from klrl.scripts.explore import (
    asymmetry,
    coding,
    dimensions,
    estimators,
    fits,
    gradients,
    inference,
    learning,
    supports,
)
from klrl.scripts.explore.report import BrokenIdentity, Section, report, write
from klrl.validation import NonNegativeInt

PROG = "klrl explore-kl"
SECTIONS: tuple[Callable[[torch.Generator], Section], ...] = (
    coding.section,
    asymmetry.section,
    fits.section,
    supports.section,
    estimators.section,
    gradients.section,
    learning.section,
    inference.section,
    dimensions.section,
)
LEAD = """
    What the Kullback-Leibler divergence is, how it behaves, how it is estimated, and where it hides: every number is
    computed by klrl.kl when this command runs, and every identity is checked. The figures lie beside this text, all
    numbers in full precision in numbers.csv.
"""


@dataclass(frozen=True, kw_only=True)
class ExploreKL:
    """Show what the KL divergence is: numbered figures, a text that leads through them, a table of all numbers.

    Everything is computed by klrl.kl, and what the theory calls equal is checked. Takes some seconds (extra plots).
    """

    output: Path = Path("explore-kl")
    """New or empty folder for README.md, numbers.csv and the figures."""
    seed: NonNegativeInt = 0
    """Seed of all random numbers."""


def explore(seed: int) -> list[Section]:
    """Compute every section; each has random numbers of its own.

    Raises:
        BrokenIdentity: an identity does not hold.
    """
    return [section(torch.Generator().manual_seed(1000 * seed + i)) for i, section in enumerate(SECTIONS)]


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl explore-kl``."""
    args = parse(ExploreKL, sys.argv[1:] if argv is None else argv, PROG)
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
