"""Algorithms, one file per paper: PPO, TRPO and NPG, each with any trust region."""

if __name__ != "klrl.agents":
    raise ImportError("this folder installs as 'klrl.agents': write 'from klrl.agents import PPO'")

from typing import TYPE_CHECKING

from klrl.agents import settings
from klrl.agents.config import AgentConfig
from klrl.agents.settings import *
from klrl.lazy import exports

__all__ = [
    "Agent",
    "AgentConfig",
    "Preferences",
    "collect_preferences",
    "distill",
    "export_policy",
    "fit_preferences",
    "load_agent",
]
__all__ += settings.__all__
if TYPE_CHECKING:
    from klrl.agents.base import Agent, load_agent
    from klrl.agents.distillation import distill
    from klrl.agents.dpo import fit_preferences
    from klrl.agents.export import export_policy
    from klrl.agents.names import *
    from klrl.agents.preferences import Preferences, collect_preferences
else:
    _agents = ["AGENTS", *(cls.__name__.removesuffix("Config") for cls in settings.CONFIGS.values())]
    __all__ += _agents
    __getattr__, __dir__ = exports(
        __name__,
        {
            "Agent": "base",
            "Preferences": "preferences",
            "collect_preferences": "preferences",
            "distill": "distillation",
            "export_policy": "export",
            "fit_preferences": "dpo",
            "load_agent": "base",
            **dict.fromkeys(_agents, "names"),
        },
    )
    """Names that need torch: settings are read, and explained, without it."""
