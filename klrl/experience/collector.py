"""Rollouts: a collector steps vector environments and returns time-major batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from klrl.experience.environments import autoreset_mode, reset
from klrl.policy.arrays import Array, stack
from klrl.policy.distributions import Distribution, stack_records
from klrl.policy.observations import MASK, Encoding, flat_mask

T = TypeVar("T", Tensor, Distribution)
Act = Callable[[Tensor], tuple[Array, np.ndarray, Distribution]]


@dataclass(frozen=True)
class Episode:
    """A finished episode, as one row of ``episodes.csv``."""

    total_timesteps: int
    """Environment steps of the whole run when it ended."""
    episode_return: float
    """Sum of the environment's own rewards."""
    length: int
    env_index: int


@dataclass(frozen=True, eq=False)
class Batch:
    """T steps of N environments, time-major ``[T, N, ...]``; observations and rewards as the environment gave them."""

    observations: Tensor
    """What the policy was given, before normalisation, ``[T, N, *O]``."""
    actions: Tensor
    """The policy's actions (before clipping to a box or shifting to a start), ``[T, N, *A]``."""
    behaviour: Distribution
    """The distributions the actions were drawn from, ``[T, N]``."""
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    """False for the dummy steps that NEXT_STEP environments take to reset; they count nowhere."""
    next_observations: Tensor
    """The observations after the last step, ``[N, *O]``."""
    final_observations: Tensor
    """The last observations of truncated episodes, ``[M, *O]``, in the order of ``truncated.nonzero()``."""
    episodes: tuple[Episode, ...] = ()
    """The episodes that ended in this batch."""

    @property
    def ended(self) -> Tensor:
        """Where an episode ended, ``[T, N]``."""
        return self.terminated | self.truncated

    @cached_property
    def n_samples(self) -> int:
        """Number of valid steps."""
        return int(self.valid.sum())

    def samples(self, x: T) -> T:
        """The valid steps of something time-major, ``[T, N, ...] -> [n_samples, ...]``."""
        if self.n_samples == self.valid.numel():
            return x.map(_merge) if isinstance(x, Distribution) else _merge(x)
        return x[self.valid]

    def next_values(self, values: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
        """V of the state each step led to, ``[T, N]``, given V of the states it left.

        That is the value of the next row, of ``next_observations`` after the last, and of the final
        observation where an episode was truncated.
        """
        following = torch.cat([values[1:], value(self.next_observations).unsqueeze(0)])
        if len(self.final_observations):
            following[self.truncated] = value(self.final_observations)
        return following


def _merge(x: Tensor) -> Tensor:
    return x.flatten(0, 1)


class BadStep(ValueError):
    """What an environment gave cannot be used; the message says what, where and what would do."""


class Collector:
    """Steps vector environments with a policy; episodes go on from one batch to the next."""

    def __init__(
        self, envs: VectorEnv, seeds: np.random.SeedSequence, encoding: Encoding, total_timesteps: int = 0
    ) -> None:
        self.envs, self.encoding = envs, encoding
        self.mode = autoreset_mode(envs)
        self.total_timesteps = total_timesteps
        self._resetting = np.zeros(envs.num_envs, dtype=bool)
        self._observation = self._encoded(*reset(envs, seeds), self._resetting)
        self._returns = np.zeros(envs.num_envs)
        self._lengths = np.zeros(envs.num_envs, dtype=np.int64)

    def collect(self, act: Act, n_steps: int) -> Batch:
        """Take ``n_steps`` in every environment.

        Args:
            act: observations ``[N, *O]`` to (policy's actions, environment's actions, distributions).
            n_steps: T.
        """
        rows: list[tuple[Tensor, Array, Distribution, Tensor, np.ndarray, np.ndarray, np.ndarray]] = []
        finals: list[Tensor] = []
        episodes: list[Episode] = []
        for _ in range(n_steps):
            observation = self._observation
            action, executed, behaviour = act(observation)
            valid = ~self._resetting
            step, reward, terminated, truncated, info = self.envs.step(executed)
            # Copies: an environment may use the same arrays again for its next step.
            terminated = np.array(terminated)
            truncated = truncated & ~terminated
            self._observation = self._encoded(step, info, terminated | truncated)
            rewards = self._checked("reward", np.array(reward, np.float32))
            finals += [self._final(int(i), info) for i in truncated.nonzero()[0]]
            episodes += self._count(np.asarray(reward), terminated | truncated, valid)
            rows.append((observation, action, behaviour, rewards, terminated, truncated, valid))
        return self._batch(rows, finals, episodes)

    def _count(self, reward: np.ndarray, ended: np.ndarray, valid: np.ndarray) -> list[Episode]:
        """Follow returns and lengths; the episodes that ended in this step."""
        self.total_timesteps += int(np.count_nonzero(valid))
        self._returns += reward * valid
        self._lengths += valid
        if self.mode is AutoresetMode.NEXT_STEP:
            self._resetting = ended
        if not ended.any():
            return []
        done = [
            Episode(self.total_timesteps, float(self._returns[i]), int(self._lengths[i]), int(i))
            for i in np.flatnonzero(ended)
        ]
        self._returns[ended] = 0.0
        self._lengths[ended] = 0
        return done

    def _final(self, i: int, info: dict[str, Any]) -> Tensor:
        """The last observation of the episode that just ended in environment ``i``."""
        if self.mode is AutoresetMode.NEXT_STEP:
            return self._observation[i]
        final = self._as_array(info["final_obs"][i])
        return self._checked("final observation", final[None], self.encoding.locate, [i])[0]

    def _batch(self, rows: list[Any], finals: list[Tensor], episodes: list[Episode]) -> Batch:
        observations, actions, behaviour, rewards, terminated, truncated, valid = zip(*rows, strict=True)
        return Batch(
            observations=torch.stack(observations),
            actions=stack(actions),
            behaviour=stack_records(behaviour),
            rewards=torch.stack(rewards),
            terminated=torch.as_tensor(np.array(terminated)),
            truncated=torch.as_tensor(np.array(truncated)),
            valid=torch.as_tensor(np.array(valid)),
            next_observations=self._observation,
            final_observations=torch.stack(finals) if finals else self._observation[:0],
            episodes=tuple(episodes),
        )

    def _encoded(self, observation: Any, info: dict[str, Any], ended: np.ndarray) -> Tensor:
        """Observations as the policy gets them, with their masks."""
        ended = ended & (self.mode is AutoresetMode.NEXT_STEP)  # what is done in these states has no effect
        masks = self._masks(info, ended) if self.encoding.mask_in_info else None
        encoded = self._as_array(observation, masks)
        if self.encoding.n_mask:
            self.encoding.allowed(encoded)[ended] = 1.0
            for i in np.flatnonzero(self.encoding.forbids_everything(encoded)):
                raise BadStep(
                    f"{MASK} of environment {i} allows no action after {self.total_timesteps} steps; "
                    "allowed: at least one action in every state"
                )
        return self._checked("observation", encoded, self.encoding.locate)

    def _as_array(self, observation: Any, masks: np.ndarray | None = None) -> np.ndarray:
        try:
            return self.encoding(observation, masks)
        except ValueError as error:
            raise BadStep(f"{error} (after {self.total_timesteps} steps)") from error

    def _masks(self, info: dict[str, Any], ended: np.ndarray) -> np.ndarray:
        """``info``'s masks ``[N, n]``; none is needed where an episode has just ended."""
        masks = info.get(MASK, [None] * len(ended))
        known = np.asarray(info.get(f"_{MASK}", [mask is not None for mask in masks]))
        for i in np.flatnonzero(~known & ~ended):
            raise BadStep(
                f"info of environment {i} has no {MASK!r} after {self.total_timesteps} steps; "
                "allowed: one at every reset and step, or action_mask = 'none'"
            )
        n = self.encoding.n_mask
        flat = [flat_mask(masks[i]) if known[i] else np.ones(n) for i in range(len(ended))]
        for index, mask in enumerate(flat):
            if len(mask) != n:
                raise BadStep(f"{MASK} of environment {index} has {len(mask)} elements; allowed: {n}")
        return np.stack(flat)

    def _checked(
        self,
        name: str,
        array: np.ndarray,
        locate: Callable[[tuple[int, ...]], str] = lambda _: "",
        environments: Sequence[int] | None = None,
    ) -> Tensor:
        """As a tensor on the same memory; a value that is not finite is refused where it enters.

        Args:
            name: what it is.
            array: one row per environment.
            locate: words for an index inside of a row.
            environments: which ones, if not all.
        """
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            row, *inside = (int(i) for i in np.argwhere(~np.isfinite(array))[0])
            index = row if environments is None else environments[row]
            raise FloatingPointError(
                f"{name} of environment {index}{locate(tuple(inside))} is {array[row, *inside]} "
                f"after {self.total_timesteps} steps; allowed: finite numbers"
            )
        return torch.from_numpy(array)
