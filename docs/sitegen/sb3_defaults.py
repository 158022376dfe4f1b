"""Defaults of Stable-Baselines3's agents beside klrl's, which a test compares with those of the installed packages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from klrl.agents.settings import CONFIGS
from sitegen.markdown import table

_BOTH = {
    "n_envs": 1, "n_steps": 2048, "gamma": 0.99, "gae_lambda": 0.95, "normalize_advantage": True,
    "learning_rate_schedule": "constant", "normalize_observations": False, "scale_rewards": False,
    "actor_hidden_sizes": (64, 64), "critic_hidden_sizes": (64, 64), "activation": "tanh", "log_std_init": 0.0,
    "scale_actions": False, "device": "auto",
}  # fmt: skip
THEIRS: dict[str, dict[str, Any]] = {
    "PPO": _BOTH | {
        "learning_rate": 0.0003, "batch_size": 64, "n_epochs": 10, "clip_range": 0.2, "target_kl": None,
        "ent_coef": 0.0, "vf_coef": 0.5, "max_grad_norm": 0.5,
    },
    "TRPO": _BOTH | {
        "learning_rate": 0.001, "batch_size": 128, "n_critic_updates": 10, "target_kl": 0.01, "cg_max_steps": 15,
        "cg_damping": 0.1, "line_search_shrinking_factor": 0.8, "line_search_max_iter": 10, "sub_sampling_factor": 1,
    },
}  # fmt: skip
"""Values of Stable-Baselines3's PPO and sb3-contrib's TRPO under klrl's names; what they do not have is off there."""


def ours(agent: str, name: str) -> Any:
    """Return klrl's default; of a setting of the trust region, the one that the default region has."""
    config = CONFIGS[agent.lower()].for_env(None)
    value = getattr(config, name)
    return getattr(config.region, name, None) if value is None else value


def defaults() -> str:
    """Make the table: a row per setting that both have, klrl's value in bold where it is another one."""
    names = dict.fromkeys(name for values in THEIRS.values() for name in values)
    rows = []
    for name in names:
        cells = [f"`{name}`"]
        for agent, values in THEIRS.items():
            pair = (values[name], ours(agent, name)) if name in values else ("", "")
            cells += [_shown(pair[0]), _shown(pair[1]) if pair[0] == pair[1] else f"**{_shown(pair[1])}**"]
        rows.append(cells)
    return table(["setting", "SB3's PPO", "klrl's PPO", "sb3-contrib's TRPO", "klrl's TRPO"], rows)


def _shown(value: Any) -> str:
    return "off" if value is False else "on" if value is True else "none" if value is None else str(value)


BLOCKS: dict[str, Callable[[], str]] = {"sb3-defaults": defaults}
