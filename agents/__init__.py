"""Algorithms, one file per paper: PPO, TRPO and NPG, each with any trust region."""

if __name__ != "klrl.agents":
    raise ImportError("this folder installs as 'klrl.agents': write 'from klrl.agents import PPO'")

from typing import TYPE_CHECKING

from klrl.lazy import exports

if TYPE_CHECKING:
    from klrl.agents.base import Agent, load_agent
    from klrl.agents.config import AgentConfig
    from klrl.agents.distillation import distill
    from klrl.agents.dpo import fit_preferences
    from klrl.agents.names import AGENTS
    from klrl.agents.npg import NPG
    from klrl.agents.ppo import PPO
    from klrl.agents.preferences import Preferences, collect_preferences
    from klrl.agents.settings import DistillationConfig, DPOConfig, NPGConfig, PPOConfig, PreferencesConfig, TRPOConfig
    from klrl.agents.trpo import TRPO

__all__ = [
    "AGENTS",
    "NPG",
    "PPO",
    "TRPO",
    "Agent",
    "AgentConfig",
    "DPOConfig",
    "DistillationConfig",
    "NPGConfig",
    "PPOConfig",
    "Preferences",
    "PreferencesConfig",
    "TRPOConfig",
    "collect_preferences",
    "distill",
    "fit_preferences",
    "load_agent",
]
__getattr__, __dir__ = exports(
    __name__,
    {
        "AGENTS": "names",
        "NPG": "npg",
        "PPO": "ppo",
        "TRPO": "trpo",
        "Agent": "base",
        "AgentConfig": "config",
        "DPOConfig": "settings",
        "DistillationConfig": "settings",
        "NPGConfig": "settings",
        "PPOConfig": "settings",
        "Preferences": "preferences",
        "PreferencesConfig": "settings",
        "TRPOConfig": "settings",
        "collect_preferences": "preferences",
        "distill": "distillation",
        "fit_preferences": "dpo",
        "load_agent": "base",
    },
)
"""Names that need torch, and those that do not: a command line is read before it is needed."""
