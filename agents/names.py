"""Agents by name: all that ``klrl.agents`` exports of them is in ``__all__``."""

from __future__ import annotations

from typing import Any

from klrl.agents.base import Agent
from klrl.agents.npg import NPG
from klrl.agents.ppo import PPO
from klrl.agents.trpo import TRPO
from klrl.own import named
from klrl.text import nearest

__all__ = ["AGENTS", "NPG", "PPO", "TRPO"]

AGENTS: dict[str, type[Agent[Any]]] = {cls.config_class.algorithm: cls for cls in (PPO, TRPO, NPG)}
"""Agents by their names on the command line, in presets and in saved state."""


def agent_class(name: str) -> type[Agent[Any]]:
    """Return the class of an agent, klrl's by its name or any other as ``MODULE:CLASS``.

    Raises:
        ValueError: neither a name nor an agent's class.
    """
    if name in AGENTS:
        return AGENTS[name]
    allowed = f"{', '.join(AGENTS)}, or MODULE:CLASS of one of your own{nearest(name, AGENTS)}"
    found = named("agent", name, allowed)
    if not (isinstance(found, type) and issubclass(found, Agent)):
        raise ValueError(f"agent = {name!r} is no class of agents; allowed: {allowed}")
    return found


def name_of(cls: type[Agent[Any]]) -> str:
    """Return the name by which :func:`agent_class` finds a class."""
    known = AGENTS.get(cls.config_class.algorithm)
    return cls.config_class.algorithm if known is cls else f"{cls.__module__}:{cls.__qualname__}"
