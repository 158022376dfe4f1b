"""Settings that are known to work, per algorithm and environment; plain data, versions of an id share one entry.

Starting points are the published recipes (Stable-Baselines3 Zoo, Tianshou, KLip-PPO), changed where klrl's
own runs on seeds >= 100 did better.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Settings = Mapping[str, Any]

_MUJOCO_TASKS = (
    "Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum", "InvertedPendulum",
    "Pusher", "Reacher", "Swimmer", "Walker2d",
)  # fmt: skip

_MUJOCO: Settings = {
    "n_envs": 16, "n_steps": 128, "gae_lambda": 0.9, "critic_hidden_sizes": (256, 256), "log_std_init": -0.5,
}  # fmt: skip
_MUJOCO_PPO: Settings = {
    **_MUJOCO, "batch_size": 64, "n_epochs": 10, "learning_rate": 3e-4, "vf_coef": 0.25, "recompute_advantages": True,
}  # fmt: skip
_MUJOCO_NATURAL_GRADIENT: Settings = {**_MUJOCO, "batch_size": 128, "cg_damping": 1.0, "n_critic_updates": 20}
# Such a discount looks a whole episode ahead; so must lambda, and the pieces of an episode that an update is given.
_SWIMMER: Settings = {"gamma": 0.9999, "gae_lambda": 0.98, "n_envs": 2, "n_steps": 1024}
# The only reward comes at the end of an episode of hundreds of steps.
_FAR_REWARD: Settings = {"n_envs": 1, "n_steps": 512, "gamma": 0.9999, "gae_lambda": 0.9}
# The landing, hundreds of steps ahead, must be worth more than hovering.
_LANDING: Settings = {"n_envs": 16, "gamma": 0.999, "gae_lambda": 0.98}

_ATARI: Settings = {
    "image_network": "nature", "actor_hidden_sizes": (), "critic_hidden_sizes": (), "sign_of_rewards": True,
    "life_is_episode": True, "scale_rewards": False,
}  # fmt: skip
_MINIGRID: Settings = {"image_scale": "seen"}

_PPO: dict[str, Settings] = {
    "CartPole": {
        "n_envs": 8, "n_steps": 128, "batch_size": 256, "n_epochs": 20, "learning_rate": 1e-3,
        "normalize_observations": False,
    },
    "Acrobot": {"n_envs": 16, "n_steps": 256, "n_epochs": 4, "gae_lambda": 0.94},
    "MountainCar": {"n_envs": 16, "n_steps": 16, "n_epochs": 4, "gae_lambda": 0.98},
    "MountainCarContinuous": {**_FAR_REWARD, "batch_size": 256},
    "Pendulum": {"n_envs": 4, "n_steps": 256, "gamma": 0.95, "learning_rate": 1e-3},
    "LunarLander": {**_LANDING, "n_steps": 1024, "n_epochs": 4, "ent_coef": 0.01},
    "LunarLanderContinuous": {**_LANDING, "n_steps": 1024, "n_epochs": 4, "ent_coef": 0.01},
    "BipedalWalker": {"n_envs": 32, "n_steps": 2048, "gamma": 0.999, "clip_range": 0.18},
    **dict.fromkeys(_MUJOCO_TASKS, _MUJOCO_PPO),
    "Swimmer": {**_MUJOCO_PPO, **_SWIMMER},
    "ALE": {
        **_ATARI, "n_envs": 8, "n_steps": 128, "batch_size": 256, "n_epochs": 4, "learning_rate": 2.5e-4,
        "clip_range": 0.1, "ent_coef": 0.01,
    },
    "MiniGrid": {**_MINIGRID, "n_envs": 8, "n_steps": 128, "batch_size": 256, "ent_coef": 0.01},
}  # fmt: skip

_NATURAL_GRADIENT: dict[str, Settings] = {
    "CartPole": {
        "n_envs": 8, "n_steps": 128, "target_kl": 0.03, "gae_lambda": 0.98, "n_critic_updates": 20,
        "normalize_observations": False,
    },
    "Acrobot": {"n_envs": 2, "n_steps": 1024},
    "MountainCar": {"n_envs": 2, "n_steps": 1024, "n_critic_updates": 20},
    "MountainCarContinuous": {**_FAR_REWARD, "n_critic_updates": 20},
    "Pendulum": {"n_envs": 4, "n_steps": 256, "gamma": 0.95, "n_critic_updates": 15},
    "LunarLander": {**_LANDING, "n_steps": 128, "n_critic_updates": 20},
    "LunarLanderContinuous": {**_LANDING, "n_steps": 128, "n_critic_updates": 20},
    "BipedalWalker": {"n_envs": 2, "n_steps": 1024, "n_critic_updates": 20},
    **dict.fromkeys(_MUJOCO_TASKS, _MUJOCO_NATURAL_GRADIENT),
    "Swimmer": {**_MUJOCO_NATURAL_GRADIENT, **_SWIMMER},
    "ALE": {
        **_ATARI, "n_envs": 8, "n_steps": 128, "batch_size": 256, "n_critic_updates": 4, "learning_rate": 2.5e-4,
        "cg_max_steps": 10, "fisher_batch_size": 256,
    },
    "MiniGrid": {**_MINIGRID, "n_envs": 8, "n_steps": 128, "n_critic_updates": 10},
}  # fmt: skip

# Most whole steps end just outside the bound, so the usual 0.8 would take a fifth from them.
_TRPO = _NATURAL_GRADIENT | {
    task: {**_NATURAL_GRADIENT[task], "line_search_shrinking_factor": 0.95} for task in _MUJOCO_TASKS
}

FAMILIES = ("ALE", "MiniGrid")
"""Names among the presets that are not of single environments."""
PRESETS: dict[str, dict[str, Settings]] = {"ppo": _PPO, "trpo": _TRPO, "npg": _NATURAL_GRADIENT}


def preset(algorithm: str, env_id: str | None) -> Settings:
    """Return the settings for an environment id such as ``"Hopper-v5"``; empty if none are known.

    Those of a family of environments have the name of their namespace, as ALE, or of the first word, as MiniGrid.
    """
    if env_id is None:
        return {}
    name = env_id.rpartition(":")[2].rpartition("-v")[0]
    known = PRESETS.get(algorithm, {})
    family = name.partition("/")[0] if "/" in name else name.partition("-")[0]
    return known.get(name) or known.get(family if family in FAMILIES else "", {})
