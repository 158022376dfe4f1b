"""Study of variants, environments and seeds: ``klrl study design.toml --output studies/a``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from klrl.output import as_program
from klrl.run.options import RunOptions
from klrl.scripts.cli.command_line import bad_input, parse
from klrl.scripts.cli.flags import flags_in
from klrl.scripts.cli.own_modules import find_in_this_folder
from klrl.scripts.cli.study_options import Cells, EngineOptions

if TYPE_CHECKING:
    from klrl.studies.study import Say, Study

PROG = "klrl study"
DESIGN = ("variants", "agent", "set", "preset", "envs", "seeds", *(f.name for f in fields(RunOptions)))
"""Flags that make a design, in place of a file."""


@dataclass(frozen=True, kw_only=True)
class StudyFlags:
    """Train variants on environments and seeds, each run in a directory of its own, and print a table.

    The design is in a TOML file, or in flags; without either, the study in OUTPUT goes on. Interrupted by whatever, it
    goes on with the same command. Any number of these commands, on any machines that share the disk, may work on one
    OUTPUT at the same time.
    """

    design: tyro.conf.Positional[Path | None] = None
    """A TOML file: environments, seeds, base, variants."""
    output: Path
    """Directory of study.toml, which is the design, results.csv, results.json and runs/, a run directory for each."""
    variants: tuple[str, ...] = ()
    """'FIELD=VALUE ...' ...: each a variant, by what it has in place of the base; its fields are name, agent,
    trust_region and all settings. A trust region of your own is MODULE:NAME, an agent MODULE:CLASS."""
    agent: str = "ppo"
    """The agent whose preset is the base of all variants."""
    set: tuple[str, ...] = ()
    """FIELD=VALUE ...: changes to the base of all variants; settings of a trust region reach those that read them."""
    cells: tyro.conf.OmitArgPrefixes[Cells] = field(default_factory=Cells)
    preset: Literal["auto", "none"] = "auto"
    """Start from the known settings for the environment (auto), or from the plain defaults (none)."""
    by: tyro.conf.OmitArgPrefixes[EngineOptions] = field(default_factory=EngineOptions)
    run: tyro.conf.OmitArgPrefixes[RunOptions] = field(default_factory=RunOptions)


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl study``."""
    words = sys.argv[1:] if argv is None else argv
    args = parse(StudyFlags, words, PROG)
    of_design = flags_in(words, *DESIGN)
    with bad_input(PROG):
        if args.design is not None and of_design:
            raise ValueError(f"{of_design[0]} beside a file; allowed: the design in the file, or in flags")
    from klrl.scripts.cli.studying import run_study
    from klrl.studies import Study

    def make(say: Say) -> Study:
        if args.design is not None:
            if args.design.is_file():
                find_in_this_folder(args.design.read_text(errors="replace").replace('"', " ").split())
            return Study.read(args.design, args.output, say=say)
        return Study(_of_flags(args), args.output, say=say) if of_design else Study.load(args.output)

    run_study(PROG, words, args.by, make)


def _of_flags(args: StudyFlags) -> Any:
    """Return the design in the flags."""
    from klrl.studies.comparison import variants_of

    return variants_of(
        args.variants,
        args.agent,
        args.set,
        args.preset == "auto",
        environments=args.cells.environments(),
        seeds=args.cells.seeds,
        options=args.run,
    )


if __name__ == "__main__":
    as_program(main)
