"""Comparison of variants that differ in one thing: ``klrl compare --vary trust-region``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from klrl.output import as_program
from klrl.scripts.cli.command_line import bad_input, going_on, parse
from klrl.scripts.cli.terminal import PlainConsole
from klrl.validation import NonNegativeInt, PositiveInt

PROG = "klrl compare"


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Train variants that differ in one thing on several environments and seeds; a table, a CSV and a JSON.

    An interrupted comparison continues where it was; runs whose settings, steps or versions changed are run again.
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
    envs: tuple[str, ...] = ("CartPole-v1:50000", "LunarLander-v3:100000", "Hopper-v4:100000")
    """ID:STEPS ...: environments, with the steps to train on each."""
    seeds: tuple[NonNegativeInt, ...] = (0, 1, 2)
    """Run seeds."""
    preset: Literal["auto", "none"] = "auto"
    """Start from the known settings for the environment (auto), or from the plain defaults (none)."""
    processes: PositiveInt = 2
    """Runs at a time, one torch thread each."""
    output: Path = Path("compare")
    """Directory of compare.csv, compare.json and runs/, a file per run."""


def steps_by_env(words: Sequence[str]) -> dict[str, int]:
    """Read ``ID:STEPS`` of every environment.

    Raises:
        ValueError: no steps, an unknown environment, or one given twice.
    """
    from klrl.experience.environments import check_id

    if not words:
        raise ValueError("envs = (); allowed: ID:STEPS ...")
    steps: dict[str, int] = {}
    for word in words:
        env, _, number = word.rpartition(":")
        if not env or not number.isdecimal() or int(number) < 1 or env in steps:
            raise ValueError(f"envs = {word!r}; allowed: every environment once, ID:STEPS, as in CartPole-v1:50000")
        check_id(env)
        steps[env] = int(number)
    return steps


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl compare``."""
    words = sys.argv[1:] if argv is None else argv
    args = parse(Compare, words, PROG)
    from klrl.studies import Runs, comparison, table
    from klrl.studies.trials import FAILED

    console = PlainConsole()
    with bad_input(PROG):
        if not args.seeds or len({*args.seeds}) < len(args.seeds):
            raise ValueError(f"seeds = {args.seeds}; allowed: at least one, every seed once")
        plan = comparison(args.vary, args.agent, args.also, args.set, args.preset == "auto")
        runs = Runs(plan, steps_by_env(args.envs), args.seeds, args.output, console.print)
    with going_on(PROG, runs.folder, "runs"):
        rows = runs.finish(f"{PROG} {shlex.join(words)}", args.processes)
    console.print(table(rows))
    if any(row["status"] == FAILED for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    as_program(main)
