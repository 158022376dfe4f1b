"""Algorithms, one file per paper: PPO, TRPO and NPG, each with any trust region."""

if __name__ != "klrl.agents":
    raise ImportError("this folder installs as 'klrl.agents': write 'from klrl.agents import PPO'")

from klrl.agents import names
from klrl.agents.base import Agent, load_agent
from klrl.agents.config import AgentConfig
from klrl.agents.distillation import DistillationConfig, distill
from klrl.agents.dpo import DPOConfig, fit_preferences
from klrl.agents.names import *
from klrl.agents.preferences import Preferences, PreferencesConfig, collect_preferences

__all__ = [
    "Agent",
    "AgentConfig",
    "DPOConfig",
    "DistillationConfig",
    "Preferences",
    "PreferencesConfig",
    "collect_preferences",
    "distill",
    "fit_preferences",
    "load_agent",
]
__all__ += names.__all__
