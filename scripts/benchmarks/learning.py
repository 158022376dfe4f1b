"""Learning of each agent, and how far its policy moves: ``klrl benchmark learning``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
import numpy as np

from klrl.agents.settings import CONFIGS
from klrl.output import as_program
from klrl.scripts.cli.command_line import bad_input, going_on, parse
from klrl.scripts.cli.terminal import PlainConsole
from klrl.text import cell
from klrl.validation import NonNegativeInt, PositiveInt

if TYPE_CHECKING:
    from klrl.agents import AgentConfig
    from klrl.studies.work import Work

Wrapper = Callable[[gym.Env], gym.Env]


@dataclass(frozen=True)
class Task:
    """One row of the table: agent, environment, steps, and the return to reach."""

    agent: str
    env: str
    total_timesteps: int
    goal: float | None = None
    one_seed: bool = False
    space: str = ""
    """Label of its action space, if that is special."""
    wrap: Wrapper | None = None
    """Wrapper that makes the action space."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Changes to the environment's preset."""

    def make(self) -> gym.Env:
        """Make one environment."""
        env = gym.make(self.env)
        return env if self.wrap is None else self.wrap(env)

    @property
    def config(self) -> AgentConfig:
        """Return the environment's preset with the task's settings."""
        return CONFIGS[self.agent].for_env(self.env, **self.settings)

    def decided_by(self, seed: int) -> dict[str, Any]:
        """Return everything that decides its result, as JSON."""
        named = {name: getattr(self, name) for name in ("agent", "env", "space", "total_timesteps", "goal", "one_seed")}
        return named | {"seed": seed, "config": self.config.to_json()}

    @property
    def name(self) -> tuple[str, str, str]:
        """Agent, environment and actions, which identify it."""
        return self.agent, self.env, self.space


LEARNING = (
    Task("trpo", "CartPole-v1", 25_000, 475.0),
    Task("ppo", "CartPole-v1", 50_000, 475.0),
    Task("trpo", "Acrobot-v1", 50_000, -100.0),
    Task("ppo", "Acrobot-v1", 100_000, -100.0),
    Task("trpo", "Pendulum-v1", 100_000, -200.0),
    Task("ppo", "Pendulum-v1", 100_000, -200.0),
    Task("trpo", "HalfCheetah-v4", 300_000, one_seed=True),
    Task("ppo", "HalfCheetah-v4", 300_000, one_seed=True),
)


@dataclass(frozen=True, kw_only=True)
class Learning:
    """Train every task with its preset, evaluate deterministically over 20 episodes, write JSON and a table."""

    seeds: tuple[NonNegativeInt, ...] = (0, 1, 2)
    """Run seeds; tasks of one seed take the first."""
    envs: tuple[str, ...] = tuple(dict.fromkeys(task.env for task in LEARNING))
    """Environments whose tasks are run; by default all."""
    processes: PositiveInt = 2
    """Runs at a time, one torch thread each."""
    output: Path = Path("learning.json")
    """File for the measurements (JSON)."""
    peers: bool = False
    """Train other libraries' agents on MuJoCo's tasks instead (klrl benchmark learning --peers --help lists the
    options)."""


def train(task: Task, seed: int) -> dict[str, Any]:
    """Train one task with one seed and measure it."""
    import torch

    from klrl.agents import AGENTS
    from klrl.studies import measure

    torch.set_num_threads(1)
    agent = AGENTS[task.agent](task.env if task.wrap is None else task.make, task.config, seed=seed)
    measured = measure(agent, task.total_timesteps, task.make)
    every = max(1, len(agent.history) // 30)
    return {
        **{k: getattr(task, k) for k in ("agent", "env", "space", "total_timesteps", "goal", "one_seed")},
        "settings": dict(task.settings),
        "policy": type(agent.distribution(agent.drift.probe.observations[:1])).__name__ if agent.drift.probe else "",
        "seed": seed,
        **measured,
        "curve": [[r["time/total_timesteps"], r["rollout/ep_rew_mean"]] for r in agent.history[every - 1 :: every]],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return a Markdown table with one line per task, seeds side by side."""
    lines = [
        "| agent | environment | steps | goal | return, by seed | mean KL | largest KL | over target | steps/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for agent, env, space in dict.fromkeys(map(_name, rows)):
        group = [r for r in rows if _name(r) == (agent, env, space)]
        first, target = group[0], group[0]["target_kl"]
        over = sum(r["updates_over_target"] or 0 for r in group)
        cells = [
            agent,
            f"{env}, {space}" if space else env,
            f"{first['total_timesteps']:,}",
            "" if first["goal"] is None else f"{first['goal']:g}",
            ", ".join(f"{r['mean_return']:.1f}" for r in group),
            f"{np.mean([r['kl_mean'] for r in group]):.4f}",
            f"{max(r['kl_largest'] for r in group):.4f}",
            "" if target is None else f"{over} of {sum(r['updates'] for r in group)} over {target:g}",
            f"{np.median([r['steps_per_second'] for r in group]):,.0f}",
        ]
        lines.append(f"| {' | '.join(map(cell, cells))} |")
    return "\n".join(lines)


def _name(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["agent"], row["env"], row["space"]


def run_all(
    tasks: Sequence[Task], seeds: Sequence[int], processes: int, console: PlainConsole, work: Work
) -> list[dict[str, Any]]:
    """Train and measure every task that is not finished already, ``processes`` at a time, the longest first."""
    jobs = [
        (" ".join(filter(None, [*task.name, f"seed {seed}"])), task.decided_by(seed), (task, seed))
        for task in sorted(tasks, key=lambda t: -t.total_timesteps)
        for seed in (seeds[:1] if task.one_seed else seeds)
    ]
    rows: list[dict[str, Any]] = []
    for row in work.all(train, jobs, processes):
        rows.append(row)
        console.print(
            f"{len(rows)}/{len(jobs)}  {' '.join(filter(None, _name(row)))} seed {row['seed']}: "
            f"return {row['mean_return']:.1f}, KL mean {row['kl_mean']:.4f} largest {row['kl_largest']:.4f}, "
            f"{row['steps_per_second']:,.0f} steps/s"
        )
    order = {task.name: i for i, task in enumerate(tasks)}
    return sorted(rows, key=lambda r: (order[_name(r)], r["seed"]))


def benchmark(
    name: str,
    words: Sequence[str],
    tasks: Sequence[Task],
    by: Literal["env", "space"],
    chosen: Sequence[str],
    seeds: Sequence[int],
    processes: int,
    output: Path,
) -> None:
    """Run the chosen tasks, write the JSON and print the table.

    Args:
        name: name of the benchmark, as in ``klrl benchmark NAME``.
        words: its command line, for the JSON.
        tasks: all tasks.
        by: attribute by which tasks are chosen.
        chosen: values of that attribute.
        seeds: run seeds.
        processes: number of runs at a time.
        output: path of the JSON.
    """
    from klrl.run.directory import versions
    from klrl.studies.results import text
    from klrl.studies.work import Work

    prog, console = f"klrl benchmark {name}", PlainConsole()
    work = Work(output, " ".join([prog, *words]), versions(), console.print)
    known = list(dict.fromkeys(getattr(task, by) for task in tasks))
    with bad_input(prog):
        for unknown in (x for x in chosen if x not in known):
            raise ValueError(f"{by}s = {unknown!r}; allowed: {', '.join(known)}")
        work.claim()
    with going_on(prog, work.folder):
        if (record := work.finished()) is None:
            rows = run_all([task for task in tasks if getattr(task, by) in chosen], seeds, processes, console, work)
            record = work.save(text(work.command, rows))
    console.print(table(record["rows"]))


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl benchmark learning``."""
    words = sys.argv[1:] if argv is None else argv
    if "--peers" in words:
        from klrl.scripts.benchmarks import learning_peers

        learning_peers.main(words)
        return
    args = parse(Learning, words, "klrl benchmark learning")
    benchmark("learning", words, LEARNING, "env", args.envs, args.seeds, args.processes, args.output)


if __name__ == "__main__":
    as_program(main)
