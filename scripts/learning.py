"""How well and how far each agent learns: ``klrl benchmark learning``."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from rich.console import Console

from klrl.run import evaluate
from klrl.run.directory import versions
from klrl.scripts.command_line import parse
from klrl.scripts.train import AGENTS
from klrl.validation import NonNegativeInt, PositiveInt


@dataclass(frozen=True)
class Task:
    """One row of the table: what to train, for how long, and the return to reach."""

    agent: str
    env: str
    total_timesteps: int
    goal: float | None = None
    one_seed: bool = False


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
    """Only the tasks on these environments."""
    processes: PositiveInt = 2
    """Runs at a time, one torch thread each."""
    output: Path = Path("learning.json")
    """Where the measurements go."""


def train(task: Task, seed: int) -> dict[str, Any]:
    """Train one task with one seed and measure it."""
    torch.set_num_threads(1)
    agent = AGENTS[task.agent](task.env, seed=seed)
    started = time.perf_counter()
    agent.learn(task.total_timesteps)
    seconds = time.perf_counter() - started
    with gym.make(task.env) as env:
        result = evaluate(agent, env, 20, seed=seed)
    kl = np.array([row["drift/kl"] for row in agent.history])
    target = agent.region.target_kl
    every = max(1, len(agent.history) // 30)
    return {
        **asdict(task),
        "seed": seed,
        "mean_return": result.mean,
        "std_return": result.std,
        "steps_per_second": agent.num_timesteps / seconds,
        "updates": len(kl),
        "target_kl": target,
        "kl_mean": float(kl.mean()),
        "kl_largest": float(kl.max()),
        "updates_over_target": None if target is None else int((kl > target).sum()),
        "curve": [[r["time/total_timesteps"], r["rollout/ep_rew_mean"]] for r in agent.history[every - 1 :: every]],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """A Markdown table with one line per task, seeds side by side."""
    lines = [
        "| agent | environment | steps | goal | return, by seed | mean KL | largest KL | over target | steps/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for agent, env in dict.fromkeys((r["agent"], r["env"]) for r in rows):
        group = [r for r in rows if (r["agent"], r["env"]) == (agent, env)]
        first, target = group[0], group[0]["target_kl"]
        over = sum(r["updates_over_target"] or 0 for r in group)
        cells = [
            agent,
            env,
            f"{first['total_timesteps']:,}",
            "" if first["goal"] is None else f"{first['goal']:g}",
            ", ".join(f"{r['mean_return']:.1f}" for r in group),
            f"{np.mean([r['kl_mean'] for r in group]):.4f}",
            f"{max(r['kl_largest'] for r in group):.4f}",
            "" if target is None else f"{over} of {sum(r['updates'] for r in group)} over {target:g}",
            f"{np.median([r['steps_per_second'] for r in group]):,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def learning(args: Learning, console: Console) -> list[dict[str, Any]]:
    """Run all tasks, ``processes`` at a time; the longest first."""
    jobs = [
        (task, seed)
        for task in sorted(LEARNING, key=lambda t: -t.total_timesteps)
        if task.env in args.envs
        for seed in (args.seeds[:1] if task.one_seed else args.seeds)
    ]
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(args.processes, multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(train, *job) for job in jobs]):
            rows.append(row := done.result())
            console.print(
                f"{len(rows)}/{len(jobs)}  {row['agent']} {row['env']} seed {row['seed']}: "
                f"return {row['mean_return']:.1f}, KL mean {row['kl_mean']:.4f} largest {row['kl_largest']:.4f}, "
                f"{row['steps_per_second']:,.0f} steps/s"
            )
    order = {(task.agent, task.env): i for i, task in enumerate(LEARNING)}
    return sorted(rows, key=lambda r: (order[r["agent"], r["env"]], r["seed"]))


def main(argv: list[str] | None = None) -> None:
    """Run ``klrl benchmark learning``."""
    words = sys.argv[1:] if argv is None else argv
    args = parse(Learning, words, "klrl benchmark learning")
    console = Console(highlight=False, soft_wrap=True)
    rows = learning(args, console)
    command = " ".join(["klrl benchmark learning", *words])
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"command": command, "versions": versions(), "rows": rows}, indent=1) + "\n")
    console.print(table(rows))


if __name__ == "__main__":
    main()
