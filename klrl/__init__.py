"""klrl: policy optimisation under KL control.

The trust region you ask for is the trust region you get. The rooms:

* :mod:`klrl.kl` measures how far a policy moved,
* :mod:`klrl.trust_region` limits it,
* :mod:`klrl.policy` acts,
* :mod:`klrl.experience` collects,
* :mod:`klrl.run` keeps what happened,
* :mod:`klrl.agents` holds the algorithms, one short file per paper,
* :mod:`klrl.studies` compares them,
* :mod:`klrl.monitor` and :mod:`klrl.integrations` measure the policies that other libraries train.

``klrl.PPO`` and the other names in ``__all__``, and the rooms, are imported when they are used; importing this package
loads nothing heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from klrl import agents, experience, integrations, kl, monitor, policy, run, studies, trust_region
    from klrl.agents import NPG, PPO, TRPO, Agent, AgentConfig, NPGConfig, PPOConfig, TRPOConfig, load_agent
    from klrl.experience import make_vector_env
    from klrl.kl import kl_divergence
    from klrl.monitor import DriftMonitor
    from klrl.run import Callback, evaluate

__version__ = "0.1.0"
__all__ = [
    "NPG",
    "PPO",
    "TRPO",
    "Agent",
    "AgentConfig",
    "Callback",
    "DriftMonitor",
    "NPGConfig",
    "PPOConfig",
    "TRPOConfig",
    "agents",
    "evaluate",
    "experience",
    "integrations",
    "kl",
    "kl_divergence",
    "load_agent",
    "make_vector_env",
    "monitor",
    "policy",
    "run",
    "studies",
    "trust_region",
]
_ROOMS = ("agents", "experience", "integrations", "kl", "monitor", "policy", "run", "studies", "trust_region")
_NAMES = {
    "Callback": "run",
    "DriftMonitor": "monitor",
    "evaluate": "run",
    "kl_divergence": "kl",
    "make_vector_env": "experience",
}
"""The room of a name that is not in that of the agents."""


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"klrl.{name}")
    if name in __all__:
        return getattr(import_module(f"klrl.{_NAMES.get(name, 'agents')}"), name)
    raise AttributeError(f"module 'klrl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
