"""Accuracy of every family's KL in float32, and its cost: ``klrl benchmark accuracy``."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from klrl.output import as_program
from klrl.scripts.cli.command_line import bad_input, parse
from klrl.scripts.cli.terminal import PlainConsole
from klrl.validation import PositiveInt


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Worst relative error of float32 KL over random pairs, klrl's beside torch's formula; cost on 2048 x 6 Gaussians.

    The truth is torch's formula in float64, on the same float32 numbers; of families that only torch has, the
    textbook's to 40 digits, over a tenth of the pairs.
    """

    pairs: PositiveInt = 2_000
    """Number of pairs of distributions per family and level of KL."""
    repeats: PositiveInt = 200
    """Number of interleaved timings of each implementation of the KL of 2048 x 6 Gaussians."""
    output: Path = Path("accuracy.json")
    """File for the measurements (JSON)."""


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl benchmark accuracy``."""
    words = sys.argv[1:] if argv is None else argv
    args = parse(Accuracy, words, "klrl benchmark accuracy")
    import torch

    from klrl.run.directory import versions
    from klrl.scripts.benchmarks.accuracy_measurements import CASES, LEVELS, cost, errors, tables
    from klrl.studies.results import claim, write

    torch.set_num_threads(1)
    with bad_input("klrl benchmark accuracy"):
        args.output.parent.mkdir(parents=True, exist_ok=True)
        claim(args.output)
    generator = torch.Generator().manual_seed(0)
    found = (errors(case, level, args.pairs, generator) for case in CASES for level in LEVELS)
    rows = [row for row in found if row is not None]
    times = cost(args.repeats)
    record = {
        "command": " ".join(["klrl benchmark accuracy", *words]),
        "versions": versions(),
        "rows": rows,
        "microseconds": times,
    }
    write(args.output, json.dumps(record, indent=1) + "\n")
    PlainConsole().print(tables(rows, times))


if __name__ == "__main__":
    as_program(main)
