"""Helpers for fitting a policy without rewards: environments to play in, and Adam on the actor alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gymnasium.vector import VectorEnv
from torch import Tensor

from klrl.agents.base import Agent
from klrl.agents.compatibility import check_same_spaces
from klrl.experience import EnvLike, make_vector_env
from klrl.experience.environments import number_of
from klrl.policy.linearization import Objective
from klrl.policy.optimizer import Adam
from klrl.policy.surroundings import undisturbed
from klrl.run.callback import Metrics


def environments(env: EnvLike, n: int, agent: Agent[Any]) -> VectorEnv:
    """Make environments for the agent to play in, to be given to :func:`closed_after`.

    Raises:
        ValueError: they cannot be made, or their spaces differ from the agent's.
    """
    envs = make_vector_env(env, n)
    try:
        check_same_spaces("the agent", agent, "env", envs.single_observation_space, envs.single_action_space)
    except ValueError:
        with closed_after(envs, env):
            raise
    return envs


@contextmanager
def closed_after(envs: VectorEnv, env: EnvLike) -> Iterator[None]:
    """Close the environments at the end, unless they were made from a user's own ``env``."""
    try:
        yield
    finally:
        if number_of(env) is None:
            envs.close()


class ActorDescent:
    """Adam on an agent's policy, for a loss that is not its algorithm's.

    The agent's own optimiser resets its moments of the policy, because they belong to another loss.
    """

    @undisturbed
    def __init__(self, agent: Agent[Any], *, learning_rate: float, max_grad_norm: float) -> None:
        agent.networks.repack()
        agent.networks.forget_actor()
        self._actor = agent.actor
        self._adam = Adam([agent.networks.actor_parameters], learning_rate=learning_rate, max_grad_norm=max_grad_norm)

    def state(self) -> dict[str, Tensor]:
        """Return Adam's moments and step count."""
        return self._adam.state()

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore the state that :meth:`state` returned."""
        self._adam.restore(state)

    def step(self, loss: Objective) -> None:
        """Take one step of descent.

        Raises:
            FloatingPointError: the gradient is not finite; nothing has moved.
        """
        try:
            self._adam.step([loss.gradients()[self._actor]])
        except FloatingPointError as error:
            raise FloatingPointError(f"the policy's {error}") from None


def checked(metrics: Metrics, when: str) -> Metrics:
    """Return the metrics if all of them are finite numbers.

    Raises:
        FloatingPointError: naming the first one that is not.
    """
    for name, value in metrics.items():
        if not math.isfinite(float(value)):
            raise FloatingPointError(f"{name} = {value} {when}; allowed: finite numbers")
    return metrics
