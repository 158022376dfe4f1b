"""Fine-tuning with and without KL to the saved policy, on the new task and the old: ``klrl benchmark finetune``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from klrl.output import as_program
from klrl.scripts.cli.command_line import bad_input, going_on, parse
from klrl.scripts.cli.terminal import PlainConsole
from klrl.validation import NonNegativeInt, Positive, PositiveInt

PROG = "klrl benchmark finetune"


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Train PPO on CartPole, fine-tune it for a shorter pole, evaluate on both tasks, write JSON and a table.

    Fine-tuned by the clip alone, with a penalty on KL(new||saved) or KL(saved||new), or with a bound for one of them;
    next to the saved policy itself and one that learns the new task from scratch. 20 episodes each, deterministic and
    with sampled actions.
    """

    seeds: tuple[NonNegativeInt, ...] = (0, 1, 2)
    """Run seeds."""
    coefficients: tuple[Positive, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    """Coefficients of clip+reference-penalty (reference_coef)."""
    bounds: tuple[Positive, ...] = (0.03, 0.1, 0.3)
    """Bounds of clip+reference-constraint (reference_kl), nats."""
    forward_coefficients: tuple[Positive, ...] = (0.03, 0.1, 0.3)
    """Coefficients of clip+reference-forward-penalty (reference_forward_coef)."""
    forward_bounds: tuple[Positive, ...] = (0.1, 0.3)
    """Bounds of clip+reference-forward-constraint (reference_forward_kl), nats."""
    old_timesteps: PositiveInt = 50_000
    """Steps of training for the policy that is saved."""
    new_timesteps: PositiveInt = 30_000
    """Steps of training on the new task, the same for every line."""
    processes: PositiveInt = 2
    """Runs at a time, one torch thread each."""
    output: Path = Path("finetune.json")
    """File for the measurements (JSON)."""


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl benchmark finetune``."""
    words = sys.argv[1:] if argv is None else argv
    args = parse(Finetune, words, PROG)
    from klrl.run.directory import versions
    from klrl.scripts.benchmarks.finetune_runs import run, table
    from klrl.studies.results import text
    from klrl.studies.work import Work

    console = PlainConsole()
    work = Work(args.output, " ".join([PROG, *words]), versions(), console.print)
    with bad_input(PROG):
        work.claim()
    with going_on(PROG, work.folder):
        if (record := work.finished()) is None:
            record = work.save(text(work.command, run(args, console, work)))
    console.print(table(record["rows"]))


if __name__ == "__main__":
    as_program(main)
