"""Environments made, and tried out, by an agent's settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gymnasium.vector import VectorEnv

from klrl.agents.config import AgentConfig
from klrl.experience import EnvLike, make_vector_env
from klrl.experience.env_trial import try_out
from klrl.experience.environments import number_of
from klrl.experience.reproducibility import EnvTrial
from klrl.experience.split import Split
from klrl.run.world import World


@contextmanager
def envs_made(env: EnvLike, config: AgentConfig) -> Iterator[VectorEnv]:
    """Make the training environments, or this rank's share of them; close them if they turn out not to fit.

    A user's own environments stay open.

    Raises:
        ValueError: see :func:`make_envs`, or raised inside.
    """
    envs = make_envs(env, config)
    try:
        yield envs
    except ValueError:
        if number_of(env) is None:
            envs.close()
        raise


def make_envs(env: EnvLike, config: AgentConfig) -> VectorEnv:
    """Make the training environments, or this rank's share of them.

    Raises:
        ValueError: see :func:`klrl.experience.make_vector_env`; or environments of the user's on several ranks.
    """
    world = World.current()
    if world.size > 1 and number_of(env) is not None:
        kind = type(env).__name__
        raise ValueError(f"env = a {kind} on {world.size} ranks; allowed: an id, an EnvSpec or a function")
    share = world.share(config.n_envs)
    return make_vector_env(
        env,
        share.stop - share.start,
        config.vectorization_mode,
        config.worker_timeout,
        config.on_worker_failure,
        rebuild_envs=config.rebuild_envs,
        seed_every_episode=config.seed_every_episode,
        first=share.start,
    )


def number_of_envs(envs: VectorEnv, config: AgentConfig) -> int:
    """Return the number of the training environments of all ranks, given this rank's."""
    return envs.num_envs if World.current().size == 1 else config.n_envs


def split_of(config: AgentConfig) -> Split | None:
    """Return the training environments of all ranks, if there are several."""
    world = World.current()
    return Split(config.n_envs, world) if world.size > 1 else None


def try_env(env: EnvLike, config: AgentConfig) -> EnvTrial:
    """Try out such an environment, before the training environments are made."""
    return try_out(
        env,
        config.vectorization_mode,
        config.worker_timeout,
        seed_every_episode=config.seed_every_episode,
        try_envs=config.try_envs,
    )
