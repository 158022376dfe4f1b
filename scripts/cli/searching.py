"""Search over settings on the command line (``klrl tune``)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from klrl.experience.environments import check_id
from klrl.run.signals import Interrupted, Signals
from klrl.scripts.cli.command_line import bad_input, fail
from klrl.scripts.cli.terminal import PlainConsole
from klrl.studies.tuner import Tuner, check_optuna
from klrl.studies.tuning import tuning
from klrl.studies.tuning_results import best_trials, write_results

if TYPE_CHECKING:
    from klrl.scripts.tune import Tune


def search(prog: str, args: Tune) -> None:
    """Train trials until there are enough, write the results, and show the best."""
    console = PlainConsole()
    with bad_input(prog):
        check_optuna()
        check_id(args.env)
        design = tuning(
            args.agent, args.env, args.search, args.set, presets=args.preset == "auto", seeds=args.seeds,
            total_timesteps=args.total_timesteps, objective=args.objective, measure=args.measure,
            kl_budget=args.kl_budget,
        )  # fmt: skip
        tuner = Tuner(
            design, args.output, storage=args.storage, sampler=args.sampler, pruner=args.pruner,
            sampler_seed=args.sampler_seed, checkpoint_every=args.checkpoint_every, say=console.print,
        )  # fmt: skip
    goes_on = "; the same command goes on"
    try:
        with Signals() as signals:
            tuner.run(args.trials, [signals])
            files = write_results(tuner)
    except Interrupted as signal:
        console.print(f"stopped by {signal}{goes_on}")
        sys.exit(128 + signal.number)
    except OSError as error:
        fail(prog, f"{error}{goes_on}", status=1)
    _say(prog, console, tuner, [str(file) for file in files])


def _say(prog: str, console: PlainConsole, tuner: Tuner, files: list[str]) -> None:
    """Print the best trials, with the commands that train with their settings."""
    counts = ", ".join(f"{n} {state}" for state, n in tuner.counts().items())
    console.print(f"{counts}: {tuner.output / 'trials.csv'}")
    found = best_trials(tuner)
    for one, file in zip(found, files, strict=True):
        console.print(f"best: {one}\n  settings: {file}\n  {one.command}")
    if not found:
        within = "" if tuner.design.kl_budget is None else f" within the budget of {tuner.design.kl_budget:g} nats"
        fail(prog, f"no finished trial{within}", status=1)
