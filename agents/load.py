"""Any saved agent, whatever its algorithm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from klrl.agents.base import Agent
from klrl.agents.npg import NPG
from klrl.agents.ppo import PPO
from klrl.agents.trpo import TRPO
from klrl.experience import EnvLike
from klrl.run import checkpoint
from klrl.trust_region import TrustRegion
from klrl.words import plain

AGENTS: dict[str, type[Agent[Any]]] = {cls.config_class.algorithm: cls for cls in (PPO, TRPO, NPG)}
"""By the name on the command line, in presets and in saved state."""


def load_agent(
    path: str | Path,
    env: EnvLike | None = None,
    *,
    trust_region: TrustRegion | None = None,
    saved: tuple[dict[str, Tensor], dict[str, Any]] | None = None,
) -> Agent[Any]:
    """What :meth:`Agent.save` wrote, or a run directory's newest good checkpoint, as the agent that it is.

    Args:
        path: a saved agent or a run directory.
        env: as for :meth:`Agent.load`.
        trust_region: as for :meth:`Agent.load`.
        saved: what has been read there already.

    Raises:
        FileNotFoundError: nothing saved there.
        ValueError: damaged, or of an algorithm that this klrl does not have.
    """
    saved = saved or checkpoint.read(path)
    name = saved[1].get("agent")
    if not isinstance(name, str) or name not in AGENTS:
        raise ValueError(f"path = {path} holds agent {plain(repr(name), 80)}; allowed: {', '.join(AGENTS)}")
    return AGENTS[name]._of(path, saved, env, trust_region)
