"""Training from images to a goal, by commands as users type them: ``klrl benchmark pixels``."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from klrl.output import as_program
from klrl.scripts.cli.command_line import bad_input, fail, going_on, parse
from klrl.scripts.cli.terminal import PlainConsole
from klrl.text import cell, file_name
from klrl.validation import NonNegativeInt, PositiveInt

if TYPE_CHECKING:
    from klrl.studies.results import Row

PROG = "klrl benchmark pixels"
PACKAGES = ("minigrid", "ale-py", "envpool")


@dataclass(frozen=True)
class Task:
    """One row of the table: a command, and the return that counts as solved."""

    env: str
    """Name in the table."""
    variant: str
    goal: float
    """Mean return of 100 training episodes."""
    agent: str
    env_words: tuple[str, ...]
    """Flags that name the environment and its wrappers, for the evaluation, too."""
    others: tuple[str, ...]
    modules: tuple[str, ...] = ()
    """Modules that must be installed."""
    one_seed: bool = False

    @property
    def command(self) -> str:
        """Command line, but for seed and run directory."""
        return shlex.join(["klrl", "train", self.agent, *self.env_words, *self.others])


_DOOR = ("--env", "minigrid:MiniGrid-DoorKey-5x5-v0", "--wrapper", "minigrid.wrappers:ImgObsWrapper")
_DOOR_STEPS = ("--total-timesteps", "300_000")
_BOUND = ("--trust-region", "clip+constraint", "--target-kl", "0.01")
_PONG = ("--env-kwargs", "repeat_action_probability=0.0", "--vectorization-mode", "envpool")
_PONG_STEPS = ("--minibatch-dtype", "bfloat16", "--total-timesteps", "3_000_000", "--stop-at-return", "18")

TASKS = (
    Task("DoorKey-5x5", "PPO", 0.9, "ppo", _DOOR, _DOOR_STEPS, ("minigrid",)),
    Task("DoorKey-5x5", "PPO with a bound", 0.9, "ppo", _DOOR, (*_DOOR_STEPS, *_BOUND), ("minigrid",)),
    Task("DoorKey-5x5", "TRPO", 0.9, "trpo", _DOOR, _DOOR_STEPS, ("minigrid",)),
    Task(
        "Pong",
        "PPO",
        15.0,
        "ppo",
        ("--env", "ALE/Pong-v5"),
        (*_PONG, *_PONG_STEPS),
        ("ale_py", "envpool"),
        one_seed=True,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Train from images with klrl train, one command per task and seed, evaluate, and write JSON and a table.

    Run directories stay in RUNS. The same command goes on where it was interrupted.
    """

    tasks: tuple[str, ...] = tuple(dict.fromkeys(task.env for task in TASKS))
    """Tasks by their names; by default all."""
    seeds: tuple[NonNegativeInt, ...] = (0, 1, 2)
    """Run seeds; tasks of one seed take the first."""
    processes: PositiveInt = 2
    """Runs at a time, one torch thread each."""
    runs: Path = Path("runs/pixels")
    """Folder of the run directories."""
    output: Path = Path("pixels.json")
    """File for the measurements (JSON)."""


def train(task: Task, seed: int, runs: Path) -> Row:
    """Train one task with one seed, or go on with it, evaluate it and measure what its run directory has.

    Raises:
        RuntimeError: a command failed; its last line.
        ValueError: the run was made with other versions.
    """
    directory = runs / file_name(f"{task.env} {task.variant} {seed}")
    _check_versions(directory)
    words = [*shlex.split(task.command)[1:], "--seed", str(seed), "--torch-threads", "1"]
    _klrl([*words, "--run-dir", str(directory), "--resume"])
    evaluation = directory.with_name(f"{directory.name}.json")
    _klrl(["evaluate", str(directory), *task.env_words, "--json", str(evaluation)])
    played = json.loads(evaluation.read_text(encoding="utf-8"))
    row = {"env": task.env, "variant": task.variant, "agent": task.agent, "goal": task.goal, "seed": seed}
    after = {name: played[name] for name in ("num_timesteps", "mean_return", "std_return")}
    return row | {"command": task.command} | after | measured(directory, task.goal)


def measured(directory: Path, goal: float) -> Row:
    """Return what a run directory tells: how far the policy moved, its curve, and when it was there.

    Args:
        directory: run directory.
        goal: mean return of 100 training episodes.
    """
    from klrl.report import read_runs
    from klrl.studies.outcomes import movement_of

    (run,) = read_runs([directory])
    columns = {name: column.tolist() for name, column in run.columns.items()}
    history = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    returns = run.column("rollout/ep_rew_mean")
    there = np.flatnonzero(returns >= goal)
    return {
        **movement_of(history),
        "training_return": float(returns[-1]),
        "steps_to_goal": int(run.steps[there[0]]) if len(there) else None,
        "steps_per_second": float(run.column("time/fps")[-1]),
    }


def _check_versions(directory: Path) -> None:
    """Refuse a run of an earlier call with other versions: it would pass for one of these.

    Raises:
        ValueError: names them.
    """
    from klrl.run.directory import versions
    from klrl.scripts.cli.saved_agents import versions_of

    then, now = versions_of(directory), versions()
    if other := [f"{name} {then[name]}, not {now[name]}" for name in now if name in then and then[name] != now[name]]:
        raise ValueError(f"runs: {directory} was made with {', '.join(other)}; allowed: another --runs")


def _klrl(words: Sequence[str]) -> None:
    from klrl.studies.parallel import ending_by_sigterm

    with ending_by_sigterm():  # which then ends the command, too
        ended = subprocess.run(
            [sys.executable, "-m", "klrl", *words],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
    if ended.returncode:
        raise RuntimeError((ended.stderr.strip().splitlines() or [f"klrl {words[0]} failed"])[-1])


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table with one line per task and variant, seeds side by side."""
    head = ["task", "algorithm", "goal", "seeds at the goal", "training return at the end", "steps to the goal"]
    head += ["evaluation", "mean KL", "largest KL", "over target"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for env, variant in dict.fromkeys((row["env"], row["variant"]) for row in rows):
        group = [row for row in rows if (row["env"], row["variant"]) == (env, variant)]
        first, steps = group[0], [row["steps_to_goal"] for row in group]
        target, over = first["target_kl"], sum(row["updates_over_target"] for row in group)
        cells: list[Any] = [
            env,
            variant,
            f"{first['goal']:g}",
            f"{sum(x is not None for x in steps)} of {len(group)}",
            ", ".join(f"{row['training_return']:.3g}" for row in group),
            ", ".join("never" if x is None else f"{x / 1000:,.0f}k" for x in steps),
            ", ".join(f"{row['mean_return']:.3g}" for row in group),
            f"{np.mean([row['kl_mean'] for row in group]):.4f}",
            f"{max(row['kl_largest'] for row in group):.4f}",
            "" if target is None else f"{over} of {sum(row['updates'] for row in group):,} over {target:g}",
        ]
        lines.append(f"| {' | '.join(map(cell, cells))} |")
    return "\n".join(lines)


def _name(env: str, variant: str, seed: int) -> str:
    return f"{env} {variant} seed {seed}"


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl benchmark pixels``."""
    words = sys.argv[1:] if argv is None else argv
    args = parse(Pixels, words, PROG)
    from klrl.run.directory import versions
    from klrl.studies.results import text
    from klrl.studies.work import Work

    console = PlainConsole()
    work = Work(args.output, shlex.join([*PROG.split(), *words]), versions(PACKAGES), console.print)
    known = dict.fromkeys(task.env for task in TASKS)
    chosen = [task for task in TASKS if task.env in args.tasks]
    with bad_input(PROG):
        for unknown in (name for name in args.tasks if name not in known):
            raise ValueError(f"tasks = {unknown!r}; allowed: {', '.join(known)}")
        for module in (name for task in chosen for name in task.modules if find_spec(name) is None):
            raise ValueError(f"{module} is not installed; allowed: pip install 'klrl[pixels,atari,envpool]'")
        work.claim()
    jobs = {
        _name(task.env, task.variant, seed): ({"command": task.command, "seed": seed}, (task, seed, args.runs))
        for task in chosen
        for seed in (args.seeds[:1] if task.one_seed else args.seeds)
    }
    with going_on(PROG, work.folder):
        if (record := work.finished()) is None:
            rows: dict[str, Row] = {}
            try:
                for row in work.all(train, [(name, *job) for name, job in jobs.items()], args.processes):
                    name = _name(row["env"], row["variant"], row["seed"])
                    rows[name] = row
                    console.print(f"{len(rows)}/{len(jobs)}  {name}: return {row['mean_return']:.3g}")
            except (RuntimeError, ValueError) as error:
                fail(PROG, f"{error}; what is finished is in {args.runs}, and the same command continues", status=1)
            record = work.save(text(work.command, [rows[name] for name in jobs], PACKAGES))
    console.print(table(record["rows"]))


if __name__ == "__main__":
    as_program(main)
