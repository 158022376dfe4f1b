"""Checks of an environment before training: ``klrl doctor HalfCheetah-v5``."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass

import gymnasium as gym
import tyro

from klrl.output import as_program
from klrl.scripts.cli.command_line import bad_input, parse
from klrl.scripts.cli.terminal import PlainConsole
from klrl.validation import NonNegativeInt, PositiveInt

_SIGNS = {"ok": "  ok   ", "note": "  note ", "problem": "PROBLEM"}


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Check that an environment meets klrl's assumptions: spaces, time limit, finite numbers, repeatable episodes."""

    env: tyro.conf.Positional[str]
    """Gymnasium id, for example CartPole-v1, or module:Id-v0."""
    seed: NonNegativeInt = 0
    """Seed of episodes and random actions."""
    steps: PositiveInt = 10_000
    """Number of random steps in which to look for NaN and infinity."""


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl doctor``: exit status 1 if there is a problem."""
    args = parse(Doctor, sys.argv[1:] if argv is None else argv, "klrl doctor")
    from klrl.experience.checkup import check_up
    from klrl.experience.environments import check_id, factory

    console = PlainConsole()
    with bad_input("klrl doctor"):
        check_id(args.env)
    problems = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=DeprecationWarning)
        gym.logger.min_level = gym.logger.ERROR  # the check reports problems of spaces itself
        for finding in check_up(factory(args.env), seed=args.seed, steps=args.steps):
            console.print(f"{_SIGNS[finding.verdict]}  {finding.question}: {finding.answer}")
            problems += finding.verdict == "problem"
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    as_program(main)
