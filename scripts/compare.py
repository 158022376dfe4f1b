"""What one thing changes, everything else equal: ``klrl compare --vary trust-region``."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from rich.console import Console

from klrl.agents import AGENTS
from klrl.experience.environments import check_id
from klrl.output import as_program
from klrl.scripts.command_line import bad_input, parse
from klrl.scripts.compare_report import table, write_csv
from klrl.scripts.learning import save
from klrl.scripts.parallel import in_parallel
from klrl.scripts.terminal import PlainConsole
from klrl.scripts.trials import FAILED, Row, Trial, run
from klrl.scripts.variants import Comparison, comparison
from klrl.scripts.work import claim, going_on
from klrl.validation import NonNegativeInt, PositiveInt

PROG = "klrl compare"


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Train variants that differ in one thing on several environments and seeds; a table, a CSV and a JSON.

    A call that was interrupted goes on where it was; runs whose settings, steps or versions changed are run again.
    """

    vary: tuple[str, ...]
    """FIELD [VALUES ...]: "agent" or any setting of the agent. Without values every trust region, every agent, or
    every name that the setting knows, where it fits the environment. Several numbers are joined by commas: 64,64."""
    agent: str = "ppo"
    """The agent whose preset is the base of all variants."""
    also: tuple[str, ...] = ()
    """Other agents as further variants, each with its own trust region, the rest as in the base."""
    set: tuple[str, ...] = ()
    """FIELD=VALUE ...: changes to the base of all variants; settings of a trust region reach those that read them."""
    envs: tuple[str, ...] = ("CartPole-v1:50000", "LunarLander-v3:100000", "Hopper-v4:100000")
    """Environments with their steps, ID:STEPS."""
    seeds: tuple[NonNegativeInt, ...] = (0, 1, 2)
    """Run seeds."""
    preset: Literal["auto", "none"] = "auto"
    """The base is the known settings for the environment (auto), or the plain defaults (none)."""
    processes: PositiveInt = 2
    """Runs at a time, one torch thread each."""
    output: Path = Path("compare")
    """Directory of compare.csv, compare.json and runs/, a file per run."""


def steps_by_env(words: Sequence[str]) -> dict[str, int]:
    """``ID:STEPS`` of every environment.

    Raises:
        ValueError: no steps, an unknown environment, or one that is there twice.
    """
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


def trials_of(plan: Comparison, steps: dict[str, int], seeds: Sequence[int], console: Console) -> list[Trial]:
    """Every run, in the order of the table; every configuration has met its environment before the first one runs.

    Where all values there are were asked for, a line names each that does not fit an environment.

    Raises:
        ValueError: a setting that does not fit the others or the environment.
    """
    trials = []
    for env, total_timesteps in steps.items():
        for variant in plan.variants:
            try:
                config = plan.config(variant, env)
                AGENTS[variant.agent](env, config).close()
            except ValueError as error:
                if not plan.every:
                    raise ValueError(f"{env}, {variant.name}: {error}") from error
                console.print(f"left out: {env}, {variant.name}: {error}")
                continue
            names = {"env": env, "variant": variant.name, "agent": variant.agent}
            trials += [Trial(**names, seed=seed, total_timesteps=total_timesteps, config=config) for seed in seeds]
    return trials


def kept_rows(trials: Sequence[Trial], folder: Path, console: Console) -> dict[str, Row]:
    """Finished runs of earlier calls by name, and a line for each that is another one by now, or none of klrl's.

    Raises:
        OSError: what is there cannot be read, or not be replaced.
    """
    rows = {}
    for trial in trials:
        try:
            row = trial.kept(folder)
        except ValueError as error:
            console.print(f"{trial.name}: run again, {error}")
            continue
        if row is None:
            continue
        if changed := trial.differences(row):
            console.print(f"{trial.name}: run again, the finished run differs in {', '.join(changed)}")
        else:
            rows[trial.name] = row
    if rows:
        console.print(f"{len(rows)} of {len(trials)} runs are finished already")
    return rows


def run_all(trials: Sequence[Trial], folder: Path, processes: int, console: Console) -> dict[str, Row]:
    """Run the longest first, a line for each that ends; rows by name."""
    rows: dict[str, Row] = {}
    jobs = sorted(trials, key=lambda trial: -trial.total_timesteps)
    started, left = time.monotonic(), sum(trial.total_timesteps for trial in trials)
    done = 0
    with contextlib.closing(in_parallel(run, [(trial, folder) for trial in jobs], processes)) as results:
        for row in results:
            name = f"{row['env']} {row['variant']} seed {row['seed']}"
            rows[name] = row
            done, left = done + row["total_timesteps"], left - row["total_timesteps"]
            seconds = (time.monotonic() - started) * left / done
            console.print(f"{len(rows)}/{len(jobs)}  {name}: {_said(row)}, {timedelta(seconds=round(seconds))} left")
    return rows


def _said(row: Row) -> str:
    if row["status"] == FAILED:
        return f"failed, {row['error']}"
    kl = f"KL mean {row['kl_mean']:.4f} largest {row['kl_largest']:.4f}"
    return f"return {row['mean_return']:.1f}, {kl}, {row['steps_per_second']:,.0f} steps/s"


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl compare``."""
    words = sys.argv[1:] if argv is None else argv
    args = parse(Compare, words, PROG)
    console = PlainConsole()
    with bad_input(PROG):
        if not args.seeds or len({*args.seeds}) < len(args.seeds):
            raise ValueError(f"seeds = {args.seeds}; allowed: at least one, every seed once")
        plan = comparison(args.vary, args.agent, args.also, args.set, args.preset == "auto")
        trials = trials_of(plan, steps_by_env(args.envs), args.seeds, console)
        folder = args.output / "runs"
        folder.mkdir(parents=True, exist_ok=True)
        lines, record = args.output / "compare.csv", args.output / "compare.json"
        for file in (lines, record):
            claim(file)
        rows = kept_rows(trials, folder, console)
    with going_on(PROG, folder, "runs"):
        rows |= run_all([trial for trial in trials if trial.name not in rows], folder, args.processes, console)
        ordered = [{k: v for k, v in rows[trial.name].items() if k != "versions"} for trial in trials]
        write_csv(ordered, lines)
        save(f"{PROG} {shlex.join(words)}", ordered, record)
    console.print(table(ordered))
    if any(row["status"] == FAILED for row in ordered):
        sys.exit(1)


if __name__ == "__main__":
    as_program(main)
