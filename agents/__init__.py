"""The algorithms, one file per paper: PPO and TRPO, each given any trust region."""

if __name__ != "klrl.agents":
    raise ImportError("this folder installs as 'klrl.agents': write 'from klrl.agents import PPO'")

from klrl.agents.base import Agent
from klrl.agents.config import AgentConfig
from klrl.agents.load import AGENTS, load_agent
from klrl.agents.ppo import PPO, PPOConfig
from klrl.agents.trpo import TRPO, TRPOConfig

__all__ = ["AGENTS", "PPO", "TRPO", "Agent", "AgentConfig", "PPOConfig", "TRPOConfig", "load_agent"]
