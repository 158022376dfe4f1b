"""Algorithms, one file per paper: PPO, TRPO and NPG, each with any trust region."""

if __name__ != "klrl.agents":
    raise ImportError("this folder installs as 'klrl.agents': write 'from klrl.agents import PPO'")

from klrl.agents.base import Agent, load_agent
from klrl.agents.config import AgentConfig
from klrl.agents.distillation import DistillationConfig, distill
from klrl.agents.dpo import DPOConfig, fit_preferences
from klrl.agents.names import AGENTS
from klrl.agents.npg import NPG, NPGConfig
from klrl.agents.ppo import PPO, PPOConfig
from klrl.agents.preferences import Preferences, PreferencesConfig, collect_preferences
from klrl.agents.trpo import TRPO, TRPOConfig

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
