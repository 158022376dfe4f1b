"""Runs of ``klrl benchmark critic``: agents whose critic is watched, and the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from klrl.agents import PPO, TRPO
from klrl.agents.improvement import Improvement
from klrl.agents.update_batch import UpdateBatch
from klrl.experience import Batch
from klrl.run.callback import Callback
from klrl.scripts.cli.terminal import PlainConsole
from klrl.studies.work import Work
from klrl.text import cell


class Watched:
    """A part of agents that measures the critic before every fit."""

    errors: list[float]

    def improve(self: Any, batch: Batch, samples: UpdateBatch, callback: Callback) -> Improvement:
        """Measure the critic, then learn."""
        residual = samples.returns - self.critic(samples.observations)
        self.errors.append((residual.square().mean() / samples.returns.square().mean()).sqrt().item())
        return super().improve(batch, samples, callback)  # type: ignore[misc]


class WatchedPPO(Watched, PPO):
    """PPO with its critic watched."""


class WatchedTRPO(Watched, TRPO):
    """TRPO with its critic watched."""


WATCHED: Mapping[str, Any] = {"ppo": WatchedPPO, "trpo": WatchedTRPO}


def train(name: str, env: str, fold: bool, seed: int, total_timesteps: int) -> dict[str, Any]:
    """Train one agent; return its returns, and how good the critic was over the training, the first update left out.

    The error is the root mean square of target - V over that of the targets: unlike the explained variance it has the
    critic's bias, and means something where all targets are nearly equal.
    """
    torch.set_num_threads(1)
    cls = WATCHED[name]
    agent = cls(env, cls.config_class.for_env(env, fold_reward_scale=fold), seed=seed)
    agent.errors = []
    agent.learn(total_timesteps)
    returns = np.array([row["rollout/ep_rew_mean"] for row in agent.history])
    explained = np.array([row["train/explained_variance"] for row in agent.history])[1:]
    errors = np.array(agent.errors)[1:]
    tenth = -(-len(explained) // 10)
    return {
        "agent": name,
        "env": env,
        "fold_reward_scale": fold,
        "seed": seed,
        "total_timesteps": total_timesteps,
        "updates": len(returns),
        "mean_return": float(np.nanmean(returns)),
        "last_return": float(returns[-1]),
        "explained_variance_median": float(np.median(explained)),
        "explained_variance_lowest": float(explained.min()),
        "explained_variance": [round(float(x), 4) for x in explained[::tenth]],
        "error_mean": float(errors.mean()),
        "error_first_half": float(errors[: len(errors) // 2].mean()),
        "error_second_half": float(errors[len(errors) // 2 :].mean()),
    }


def run(
    environments: Mapping[str, int], seeds: Iterable[int], processes: int, console: PlainConsole, work: Work
) -> list[dict[str, Any]]:
    """Train every agent on every environment, both ways, ``processes`` at a time."""
    ways = [
        (agent, env, fold, seed, steps)
        for agent in WATCHED
        for env, steps in environments.items()
        for fold in (True, False)
        for seed in dict.fromkeys(seeds)
    ]
    names = ("agent", "env", "fold_reward_scale", "seed", "total_timesteps")
    calls = [(" ".join(map(str, way)), dict(zip(names, way, strict=True)), way) for way in ways]
    rows = []
    for row in work.all(train, calls, processes):
        rows.append(row)
        said = ", ".join(f"{key} {row[key]:.3f}" for key in ("last_return", "explained_variance_median", "error_mean"))
        console.print(f"{len(rows)}/{len(calls)}  {' '.join(str(row[name]) for name in names)}: {said}")
    order = {way: i for i, way in enumerate(ways)}
    return sorted(rows, key=lambda row: order[tuple(row[name] for name in names)])


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a Markdown table with one line per agent, environment and way: means over seeds, and every seed's."""
    head = ["agent", "environment", "fold_reward_scale", "return, mean over training", "last return"]
    head += ["explained variance, median", "error, first half", "error, second half"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for way in dict.fromkeys((r["agent"], r["env"], r["fold_reward_scale"]) for r in rows):
        group = [r for r in rows if (r["agent"], r["env"], r["fold_reward_scale"]) == way]
        numbers = [_with_seeds([r[key] for r in group], 0) for key in ("mean_return", "last_return")]
        keys = ("explained_variance_median", "error_first_half", "error_second_half")
        numbers += [_with_seeds([r[key] for r in group], 3) for key in keys]
        lines.append(f"| {' | '.join([cell(str(x)) for x in way] + numbers)} |")
    return "\n".join(lines)


def _with_seeds(values: Sequence[float], digits: int) -> str:
    return f"{np.mean(values):.{digits}f} ({', '.join(f'{x:.{digits}f}' for x in values)})"
