"""Run directories opened to train: the agent as its newest good checkpoint has it, or as it began."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from klrl.agents import Agent, AgentConfig, load_agent
from klrl.experience.wrapped import Named
from klrl.run import Callback, KLBudget, StopAtReturn, checkpoint
from klrl.run.disk import LARGEST_CONFIG, read_regular_file
from klrl.text import plain
from klrl.trust_region import TrustRegion

Learn = Callable[[Sequence[Callback]], object]
NOTES = {"start_from": None, "name": None}
"""Entries of ``config.json`` beside the options, as ``klrl train`` writes them by default."""


def saved_or_new(
    path: Path,
    new: Callable[[], Agent[Any]],
    total_timesteps: int,
    env: Named,
    region: TrustRegion | None,
    network: Any = None,
    read: Callable[[Path], tuple[dict[str, Any], dict[str, Any]]] = checkpoint.read,
) -> tuple[Agent[Any], Learn]:
    """Return the agent of a run as saved, or as it began if nothing was saved; and the function that trains it.

    Args:
        path: the run directory.
        new: makes the agent as it began.
        total_timesteps: steps of the run.
        env: environment to go on in.
        region: a trust region of one's own, which is not saved.
        network: what made networks of one's own, which is not saved.
        read: reads the newest good checkpoint.

    Raises:
        ValueError: what is saved is damaged, or cannot be used here.
        OSError: a file cannot be read now.
    """
    try:
        saved = read(path)
    except FileNotFoundError:
        agent = new()
        return agent, lambda callbacks: agent.learn(total_timesteps, callbacks)
    agent = load_agent(path, env, saved=saved, trust_region=region, network=network)
    return agent, agent.resume


def difference(path: Path, config: AgentConfig, env: str, seed: int, total_timesteps: int) -> str | None:
    """Return in what the run in a directory is another one than this, or ``None``; no run is no other one.

    Raises:
        OSError: its file cannot be read now.
    """
    mine = {"agent": config.algorithm, "env": env.rpartition(":")[2], "seed": seed, "total_timesteps": total_timesteps}
    mine |= json.loads(json.dumps(config.to_json()))
    try:
        there = json.loads(read_regular_file(path / "config.json", LARGEST_CONFIG))
        theirs = {name: there[name] for name in ("agent", "seed", "total_timesteps")} | there["config"]
        if there["env"] is not None:
            theirs["env"] = there["env"]["id"]
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        return f"config.json is not as a run writes it: {plain(error, 200)}"
    changed = [name for name in mine if name in theirs and mine[name] != theirs[name]]
    return ", ".join(f"{name} = {plain(theirs[name], 80)}, not {plain(mine[name], 80)}" for name in changed) or None


def why_finished(agent: Agent[Any], budgets: Sequence[KLBudget] = (), goals: Sequence[StopAtReturn] = ()) -> str | None:
    """Return why there is nothing left to train, or ``None``.

    Args:
        agent: the agent as saved.
        budgets: limits of the training, of which those that end it count.
        goals: goals of the training.
    """
    if agent.training is None:
        return None
    if agent.num_timesteps >= agent.training.last:
        return f"{agent.num_timesteps:,} steps"
    newest = agent.history[-1]
    spent = [budget.spent(newest) for budget in budgets if budget.on_exceed == "stop"]
    reached = [goal.reached(agent, newest) for goal in goals]
    return next((reason for reason in (*spent, *reached) if reason), None)
