"""Small environments and agents that tests share."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch

from klrl.agents import Agent
from klrl.experience import Batch
from klrl.policy.arrays import tensor
from klrl.policy.observations import Encoding


def encoding_of(envs, action_mask="auto"):
    """How observations of a vector environment become arrays."""
    return Encoding(envs.single_observation_space, envs.single_action_space, action_mask)


def newest(name: str) -> str:
    """The id of the latest version of one of Gymnasium's own environments: releases differ in which they have."""
    specs = [spec for spec in gym.registry.values() if (spec.namespace, spec.name) == (None, name)]
    return max(specs, key=lambda spec: spec.version).id


Ending = Literal["terminated", "truncated", "both"]


class Counting(gym.Env):
    """Every observation says where it belongs: (environment, episode, step, last action); the reward is the step."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    action_space = gym.spaces.Discrete(4)

    def __init__(self, index: int = 0, length: int = 3, ending: Ending = "truncated") -> None:
        self.index, self.length, self.ending = index, length, ending
        self.episode = -1
        self.closed = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return self._observe(0), {}

    def step(self, action):
        reward = float(self.steps)
        self.steps += 1
        last = self.steps == self.length
        return (
            self._observe(action),
            reward,
            last and self.ending != "truncated",
            last and self.ending != "terminated",
            {},
        )

    def close(self) -> None:
        self.closed = True

    def _observe(self, action) -> np.ndarray:
        return np.array([self.index, self.episode, self.steps, action], np.float32)


class Broken(Counting):
    """Gives NaN for its observation, its reward, or the last observation of an episode, from one step on."""

    def __init__(
        self, what: Literal["observation", "reward", "final observation"], index: int, **counting: Any
    ) -> None:
        super().__init__(index, **counting)
        self.what = what

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if self.what == "reward":
            reward = float("nan")
        if self.what == "observation" or (self.what == "final observation" and truncated):
            observation[2] = np.nan
        return observation, reward, terminated, truncated, info


class Probe(gym.Env):
    """An episode starts at one of the observations, counts up for ``length`` steps, and only the last one pays."""

    def __init__(
        self,
        reward: Callable[[float, Any], float],
        *,
        observations: Sequence[float] = (0.0,),
        action_space: gym.Space | None = None,
        length: int = 1,
    ) -> None:
        self.reward, self.observations, self.length = reward, observations, length
        self.observation_space = gym.spaces.Box(-10.0, 10.0, (1,), np.float32)
        self.action_space = action_space or gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.steps, self.state = 0, float(self.np_random.choice(self.observations))
        return np.array([self.state], np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.steps += 1
        last = self.steps == self.length
        reward = float(self.reward(self.state, action)) if last else 0.0
        self.state += 1.0
        return np.array([self.state], np.float32), reward, last, False, {}


class Noise(gym.Env):
    """Observations and rewards are standard normal; episodes of 20 steps are truncated."""

    def __init__(self, action_space: gym.Space, shape: tuple[int, ...] = (3,)) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
        self.action_space = action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        return self._observe(), float(self.np_random.normal()), False, self.steps == 20, {}

    def _observe(self) -> np.ndarray:
        return self.np_random.normal(size=self.observation_space.shape).astype(np.float32)


def box(d: int) -> gym.spaces.Box:
    return gym.spaces.Box(-1.0, 1.0, (d,), np.float32)


SMALL: dict[str, Any] = {
    "n_envs": 2, "n_steps": 32, "batch_size": 32, "actor_hidden_sizes": (8,), "critic_hidden_sizes": (8,),
}  # fmt: skip


def small_agent(agent_class: type[Agent], env: Any = "CartPole-v1", seed: int = 0, **settings: Any) -> Agent:
    """An agent whose updates take milliseconds."""
    return agent_class(env, agent_class.config_class(**(SMALL | settings)), seed=seed)


def random_batch(agent: Agent, seed: int = 0, n_steps: int = 32, scale: float = 1.0) -> Batch:
    """A batch made by hand: the agent acts on random observations and gets random rewards; no environment is asked."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n_steps, agent.config.n_envs)
    observations = torch.randn(*shape, *agent.observation_space.shape, generator=generator)
    actions, _, behaviour = agent.act(observations)
    truncated = torch.rand(shape, generator=generator) < 0.1
    return Batch(
        observations=observations,
        actions=tensor(actions),
        behaviour=behaviour.map(tensor),
        rewards=scale * torch.randn(shape, generator=generator),
        terminated=(torch.rand(shape, generator=generator) < 0.1) & ~truncated,
        truncated=truncated,
        valid=torch.ones(shape, dtype=torch.bool),
        next_observations=torch.randn(*observations.shape[1:], generator=generator),
        final_observations=torch.randn(int(truncated.sum()), *observations.shape[2:], generator=generator),
    )


class Sampling(gym.Env):
    """Observations are samples of a space, rewards are normal; episodes are truncated after ``length`` steps.

    With ``masks`` of so many actions, every state allows others: in the observation's entry, or in ``info``. Actions
    that are no element of the space, or forbidden, end the test.
    """

    def __init__(
        self,
        observation_space: gym.Space,
        action_space: gym.Space | None = None,
        length: int = 10,
        masks: Literal["observation", "info"] | None = None,
        ending: Ending = "truncated",
    ) -> None:
        self.action_space = gym.spaces.Discrete(2) if action_space is None else action_space
        self.length, self.masks, self.ending = length, masks, ending
        space = copy.deepcopy(observation_space)
        if masks is not None:
            self.heads = np.ravel(getattr(self.action_space, "nvec", getattr(self.action_space, "n", None)))
        if masks == "observation":
            space = gym.spaces.Dict(x=space, action_mask=gym.spaces.MultiBinary(int(self.heads.sum())))
        self.observation_space = space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self._observe(False)

    def step(self, action):
        assert self.action_space.contains(action), action
        if self.masks is not None:
            index = np.ravel(action - self.action_space.start) + np.cumsum([0, *self.heads[:-1]])
            assert self.mask[index].all(), f"{action} is forbidden by {self.mask}"
        self.steps += 1
        last = self.steps == self.length
        observation, info = self._observe(last and self.ending == "terminated")
        ends = last and self.ending != "truncated", last and self.ending != "terminated"
        return observation, float(self.np_random.normal()), *ends, info

    def _observe(self, terminal: bool):
        """At a terminal state nothing is allowed."""
        observation = self.observation_space.sample()
        if self.masks is None:
            return observation, {}
        heads = [self.np_random.permutation(np.arange(n) < self.np_random.integers(1, n + 1)) for n in self.heads]
        self.mask = np.concatenate(heads).astype(np.int8) * (not terminal)
        if self.masks == "info":
            return observation, {"action_mask": self.mask.copy()}
        return observation | {"action_mask": self.mask.copy()}, {}
