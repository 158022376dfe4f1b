"""Environments made, and tried out, by an agent's settings."""

from __future__ import annotations

from gymnasium.vector import VectorEnv

from klrl.agents.config import AgentConfig
from klrl.experience import EnvLike, make_vector_env
from klrl.experience.env_trial import try_out
from klrl.experience.reproducibility import EnvTrial


def make_envs(env: EnvLike, config: AgentConfig) -> VectorEnv:
    """Make the training environments.

    Raises:
        ValueError: see :func:`klrl.experience.make_vector_env`.
    """
    return make_vector_env(
        env,
        config.n_envs,
        config.vectorization_mode,
        config.worker_timeout,
        config.on_worker_failure,
        rebuild_envs=config.rebuild_envs,
        seed_every_episode=config.seed_every_episode,
    )


def try_env(env: EnvLike, config: AgentConfig) -> EnvTrial:
    """Try out such an environment, before the training environments are made."""
    return try_out(
        env,
        config.vectorization_mode,
        config.worker_timeout,
        seed_every_episode=config.seed_every_episode,
        try_envs=config.try_envs,
    )
