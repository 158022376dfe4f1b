"""Comparison of variants that differ in one thing: ``klrl compare --vary trust-region``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from klrl.output import as_program
from klrl.run.options import RunOptions
from klrl.scripts.cli.command_line import parse
from klrl.scripts.cli.study_options import Cells, EngineOptions

if TYPE_CHECKING:
    from klrl.studies.study import Say, Study

PROG = "klrl compare"


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Train variants that differ in one thing on several environments and seeds, as a study; print its table.

    An interrupted comparison goes on where it was: the same command, repeated, or klrl study --output OUTPUT.
    """

    vary: tuple[str, ...]
    """FIELD [VALUES ...]: "agent" or any setting of the agent. Without values every trust region, every agent, or
    every name that the setting knows, where it fits the environment. An agent of your own is MODULE:CLASS, a trust
    region MODULE:NAME. Several numbers are joined by commas: 64,64."""
    agent: str = "ppo"
    """The agent whose preset is the base of all variants."""
    also: tuple[str, ...] = ()
    """Other agents as further variants, each with its own trust region, the rest as in the base."""
    set: tuple[str, ...] = ()
    """FIELD=VALUE ...: changes to the base of all variants; settings of a trust region reach those that read them."""
    cells: tyro.conf.OmitArgPrefixes[Cells] = field(default_factory=Cells)
    preset: Literal["auto", "none"] = "auto"
    """Start from the known settings for the environment (auto), or from the plain defaults (none)."""
    output: Path = Path("compare")
    """Directory of study.toml, results.csv, results.json and runs/, a run directory for each."""
    by: tyro.conf.OmitArgPrefixes[EngineOptions] = field(default_factory=EngineOptions)
    run: tyro.conf.OmitArgPrefixes[RunOptions] = field(default_factory=RunOptions)


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl compare``."""
    words = sys.argv[1:] if argv is None else argv
    args = parse(Compare, words, PROG)
    from klrl.scripts.cli.studying import run_study
    from klrl.studies import Study, comparison

    def make(say: Say) -> Study:
        design = comparison(
            args.vary,
            args.agent,
            args.also,
            args.set,
            args.preset == "auto",
            environments=args.cells.environments(),
            seeds=args.cells.seeds,
            options=args.run,
        )
        return Study(design, args.output, say=say)

    run_study(PROG, words, args.by, make)


if __name__ == "__main__":
    as_program(main)
