"""Make the KL divergence visible: one HTML page with charts to move and checked identities, ``klrl explore-kl``."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from klrl.output import as_program
from klrl.scripts.cli.command_line import bad_input, fail, parse
from klrl.text import printable
from klrl.validation import NonNegativeInt

PROG = "klrl explore-kl"


@dataclass(frozen=True, kw_only=True)
class ExploreKL:
    """Show what the KL divergence is, on one HTML page that needs no network: text, charts that move, all numbers.

    From bits and coins to policy updates, for readers who are new to KL or to PPO. Everything is computed by klrl.kl,
    and what the theory calls equal is checked. Takes some seconds (extra report).
    """

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("explore-kl.html")
    """The file; an older one is replaced."""
    seed: NonNegativeInt = 0
    """Seed of all random numbers."""


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl explore-kl``."""
    words = sys.argv[1:] if argv is None else argv
    args = parse(ExploreKL, words, PROG)
    from klrl.report.page import check_extra
    from klrl.studies.results import claim, write

    with bad_input(PROG):
        if args.output.suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"output = {args.output}; allowed: a name that ends in .html")
        check_extra()
        claim(args.output)
    import torch

    from klrl.scripts.explore.contents import BrokenIdentity
    from klrl.scripts.explore.page import page
    from klrl.scripts.explore.sections import LEAD, explore

    torch.set_num_threads(1)
    try:
        sections = explore(args.seed)
    except BrokenIdentity as error:
        fail(PROG, error, status=1)
    write(args.output, page(sections, LEAD, f"{PROG} {shlex.join(words)}".strip()))
    checked = sum(len(section.identities) for section in sections)
    print(printable(f"checked: {checked} equalities in {len(sections)} chapters hold"))
    print(printable(f"written: {args.output}; open it in a browser, no network needed"))


if __name__ == "__main__":
    as_program(main)
