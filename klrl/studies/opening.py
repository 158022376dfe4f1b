"""Run directories opened to train: the agent as its newest good checkpoint has it, or as it began."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gymnasium.envs.registration import EnvSpec

from klrl.agents import Agent, load_agent
from klrl.run import Callback, KLBudget, checkpoint
from klrl.trust_region import TrustRegion

Learn = Callable[[Sequence[Callback]], object]


def saved_or_new(
    path: Path, new: Callable[[], Agent[Any]], total_timesteps: int, env: str | EnvSpec, region: TrustRegion | None
) -> tuple[Agent[Any], Learn]:
    """Return the agent of a run as saved, or as it began if nothing was saved; and the function that trains it.

    Args:
        path: the run directory.
        new: makes the agent as it began.
        total_timesteps: steps of the run.
        env: environment to go on in.
        region: a trust region of one's own, which is not saved.

    Raises:
        ValueError: what is saved is damaged, or cannot be used here.
        OSError: a file cannot be read now.
    """
    try:
        saved = checkpoint.read(path)
    except FileNotFoundError:
        agent = new()
        return agent, lambda callbacks: agent.learn(total_timesteps, callbacks)
    agent = load_agent(path, env, saved=saved, trust_region=region)
    return agent, agent.resume


def why_finished(agent: Agent[Any], budgets: Sequence[KLBudget]) -> str | None:
    """Return why there is nothing left to train, or ``None``."""
    if agent.training is None:
        return None
    if agent.num_timesteps >= agent.training.last:
        return f"{agent.num_timesteps:,} steps"
    spent = [budget.spent(agent.history[-1]) for budget in budgets if budget.on_exceed == "stop"]
    return next((reason for reason in spent if reason), None)
