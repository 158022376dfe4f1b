"""Agents by name."""

from __future__ import annotations

from typing import Any

from klrl.agents.base import Agent
from klrl.agents.npg import NPG
from klrl.agents.ppo import PPO
from klrl.agents.trpo import TRPO

AGENTS: dict[str, type[Agent[Any]]] = {cls.config_class.algorithm: cls for cls in (PPO, TRPO, NPG)}
"""Agents by their names on the command line, in presets and in saved state."""
