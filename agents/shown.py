"""Representations of agents: one line, and a small table for notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from klrl.experience.environments import env_id
from klrl.shown import table
from klrl.text import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from klrl.agents.base import Agent
    from klrl.agents.learner import Learner

_METRICS = {
    "rollout/ep_rew_mean": "mean return",
    "drift/kl": "KL(old||new) of the last update, mean",
    "drift/kl_max": "its largest over states",
    "drift/kl_target": "its target",
    "drift/kl_initial": "KL(first||new)",
}
"""Metrics of the last update that are shown, and their names."""


def line(agent: Learner[Any]) -> str:
    """Describe an agent in one line: class, environment, region, progress; also one that is not initialised yet."""
    name = type(agent).__name__
    if "region" not in vars(agent) or "n_updates" not in vars(agent):
        return f"<{name}, not initialised>"
    said = [*filter(None, [_env(agent)]), f"seed={agent.seed}", f"trust_region={agent.region}"]
    drift = _last(agent).get("drift/kl")
    moved = f", drift/kl={drift:.4g}" if isinstance(drift, float) else ""
    return f"<{name} {', '.join(said)}: {agent.num_timesteps:,} steps, {agent.n_updates:,} updates{moved}>"


def in_one_line(error: KeyboardInterrupt, agent: Agent[Any]) -> None:
    """Let a notebook show one line in place of the traceback of a training that Ctrl-C ended; scripts show that."""
    done = f"{agent.num_timesteps:,} steps, {agent.n_updates:,} updates"
    goes_on = "" if agent.last_update is None else "; resume() goes on"
    line = f"stopped: {type(agent).__name__} is as after its last complete update ({done}){goes_on}"
    error._render_traceback_ = lambda: [line]  # type: ignore[attr-defined]  # which IPython looks for


def as_html(agent: Learner[Any]) -> str:
    """Return a table of the agent and its last update."""
    return table(type(agent).__name__, _rows(agent))


def figure(agent: Any, metrics: Sequence[str]) -> Figure:
    """Draw metrics of the agent's history, by default return and measured KL.

    Raises:
        ValueError: no update was done, no such metric, or matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ValueError("the figure needs matplotlib: pip install 'klrl[plots]'")
    from klrl.run.figures import METRICS, figure_of

    name = ", ".join(filter(None, [type(agent).__name__, _env(agent), f"seed {agent.seed}"]))
    return figure_of(agent.history, metrics or METRICS, name)


def _rows(agent: Learner[Any]) -> Iterator[tuple[str, object]]:
    yield "environment", _env(agent) or "none with an id"
    yield "observations", one_line(agent.observation_space)
    yield "actions", one_line(agent.action_space)
    yield "settings", repr(agent.config)
    yield "trust region", agent.region
    yield "seed, device", f"{agent.seed}, {agent.device}"
    yield "steps, updates", f"{agent.num_timesteps:,}, {agent.n_updates:,}"
    row = _last(agent)
    for metric, words in _METRICS.items():
        if isinstance(x := row.get(metric), float):
            yield words, f"{x:.4g}{' nats' if metric.startswith('drift/') else ''}"
    if "train/stop_reason" in row:
        yield "it stopped", row["train/stop_reason"]


def _env(agent: Any) -> str | None:
    envs = getattr(agent, "training_envs", None)
    return None if envs is None or envs.env is None else env_id(envs.env)


def _last(agent: Any) -> dict[str, Any]:
    """Return the metrics of the last update, if there was one."""
    history = getattr(agent, "history", None)
    return history[-1] if history else {}
