"""Finish a training that was interrupted: ``klrl resume runs/demo``."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import tyro

from klrl.output import as_program
from klrl.run.torchrun import is_rank
from klrl.scripts.cli.command_line import parse
from klrl.scripts.cli.env_words import Wrappers


@dataclass(frozen=True, kw_only=True)
class Resuming:
    """Continue from the newest good checkpoint to the end of the training, as if there had been no interruption."""

    path: tyro.conf.Positional[Path]
    """A run directory."""
    env: str | None = None
    """Gymnasium id, for environments of your own: module:Id-v0; by default that of the run. That one keeps its keyword
    arguments and its time limit."""
    wrapper: Wrappers = ()
    """Wrappers of the environment, each again as MODULE:NAME, repeated for several: nothing that is saved is imported.
    They keep their arguments."""
    trust_region: str | None = None
    """A trust region of a class of your own, which is not saved: module:NAME of one, or of what makes one."""
    network: str | None = None
    """Function that made networks of your own, of which only the name is saved: MODULE:NAME again."""


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl resume``."""
    prog = "klrl resume"
    args = parse(Resuming, sys.argv[1:] if argv is None else argv, prog)
    from klrl.run import Signals
    from klrl.scripts.cli.resuming import resume

    with ExitStack() as stack:
        world = None
        if is_rank():
            from klrl.scripts.cli.ranks import together

            world = stack.enter_context(together(prog))
        signals = stack.enter_context(Signals())  # nothing to save until the training continues
        resume(prog, args, signals, world)


if __name__ == "__main__":
    as_program(main)
