"""Distil a saved agent into another one: ``klrl distill runs/demo --actor-hidden-sizes 16 16 --output small``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from klrl.agents.settings import DistillationConfig
from klrl.output import as_program
from klrl.run.evaluation import ENOUGH
from klrl.scripts.cli.command_line import parse
from klrl.validation import NonNegativeInt, PositiveInt


@dataclass(frozen=True, kw_only=True)
class Distilling:
    """Fit a student's policy to a saved teacher's by the exact KL, and save it as an agent that can learn further."""

    teacher: tyro.conf.Positional[Path]
    """A saved agent or a run directory."""
    output: Path
    """A new or empty directory for the student."""
    config: tyro.conf.OmitArgPrefixes[DistillationConfig] = field(default_factory=DistillationConfig)
    student: Path | None = None
    """A saved agent to be moved towards the teacher; by default a new one."""
    agent: str | None = None
    """Algorithm of a new student; by default the teacher's."""
    actor_hidden_sizes: tuple[PositiveInt, ...] | None = None
    """Hidden layers of a new student's policy; by default the teacher's."""
    critic_hidden_sizes: tuple[PositiveInt, ...] | None = None
    """Hidden layers of a new student's critic; by default the teacher's."""
    env: str | None = None
    """Gymnasium id; by default the environment of the teacher's training."""
    network: str | None = None
    """Function that made networks of your own, the teacher's or a saved student's, of which only the name is saved:
    MODULE:NAME again. A new student has the teacher's, unless it gets other layers."""
    episodes: PositiveInt = 20
    """Number of episodes that teacher and student play at the end."""
    max_steps: PositiveInt = ENOUGH
    """Most steps of such an episode; longer ones are cut, which a line says."""
    seed: NonNegativeInt = 0
    """Seed of the environments and of a new student."""
    json: Path | None = None
    """File to which the numbers are also written."""


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl distill``."""
    prog = "klrl distill"
    args = parse(Distilling, sys.argv[1:] if argv is None else argv, prog)
    from klrl.scripts.cli.distilling import fit_student

    fit_student(prog, args)


if __name__ == "__main__":
    as_program(main)
