"""Critics that keep their values, or do not, when the scale of rewards changes: ``klrl benchmark critic``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from klrl.output import as_program
from klrl.scripts.cli.command_line import bad_input, going_on, parse
from klrl.scripts.cli.terminal import PlainConsole
from klrl.validation import NonNegativeInt, PositiveInt

PROG = "klrl benchmark critic"


@dataclass(frozen=True, kw_only=True)
class Critics:
    """Train PPO and TRPO with and without fold_reward_scale, measure their critics, write JSON and a table.

    A critic is measured in every update, after the change of scale and before it is fitted to the update's targets.
    """

    envs: tuple[str, ...] = ("CartPole-v1:40000", "Pendulum-v1:60000")
    """ENV:STEPS ...: environments, and the steps of every training."""
    seeds: tuple[NonNegativeInt, ...] = (100, 101, 102, 103)
    """Run seeds."""
    processes: PositiveInt = 2
    """Runs at a time, one torch thread each."""
    output: Path = Path("critic.json")
    """File for the measurements (JSON)."""

    def environments(self) -> dict[str, int]:
        """Return the steps by environment.

        Raises:
            ValueError: a word of another form.
        """
        found = {}
        for word in self.envs:
            env, _, steps = word.rpartition(":")
            if not env or not steps.isdecimal() or int(steps) < 1:
                raise ValueError(f"envs = {word!r}; allowed: ENV:STEPS, such as CartPole-v1:40000")
            found[env] = int(steps)
        return found


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl benchmark critic``."""
    words = sys.argv[1:] if argv is None else argv
    args = parse(Critics, words, PROG)
    from klrl.run.directory import versions
    from klrl.scripts.benchmarks.critic_runs import run, table
    from klrl.studies.results import text
    from klrl.studies.work import Work

    console = PlainConsole()
    work = Work(args.output, " ".join([PROG, *words]), versions(), console.print)
    with bad_input(PROG):
        environments = args.environments()
        work.claim()
    with going_on(PROG, work.folder):
        if (record := work.finished()) is None:
            rows = run(environments, args.seeds, args.processes, console, work)
            record = work.save(text(work.command, rows))
    console.print(table(record["rows"]))


if __name__ == "__main__":
    as_program(main)
