"""Steps of one rollout, in arrays that are made once; that all numbers are finite is checked when it is over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from klrl.experience.batch import Batch, Episode
from klrl.experience.infos import Infos
from klrl.experience.told import Told
from klrl.policy.arrays import Array, stack
from klrl.policy.distributions import Distribution, stack_records
from klrl.policy.distributions.squashed import before_tanh

_ACTION, _REWARD, _OBSERVATION, _FINAL = range(4)
"""Kinds of numbers, in the order in which a step gives them."""
_NAMES = ("action", "reward", "observation", "final observation")


class NonFinite(FloatingPointError):
    """An environment or the policy produced NaN or infinity; the message says which, and where."""

    transition: Mapping[str, np.ndarray] = MappingProxyType({})
    """Arrays of the step, ``[N, ...]`` each: observation, action, executed, reward, next_observation, as far as known.

    A final_observation is that of one environment, ``[1, ...]``, and ``environment`` is its index.
    """

    @classmethod
    def at(cls, what: str, value: object, step: int, episode: int, total_timesteps: int) -> NonFinite:
        """Describe a value by its place in an episode, and in the training."""
        return cls(
            f"{what} is {value} in step {step} of its episode {episode}, after {total_timesteps} steps; "
            "allowed: finite numbers"
        )


class Rollout:
    """Up to T steps of N environments.

    Args:
        first: the observations before the first step, ``[N, *O]``.
        n_steps: T.
        total_timesteps: steps counted before.
        first_number: number of the first environment, for messages.
    """

    def __init__(self, first: np.ndarray, n_steps: int, total_timesteps: int, first_number: int = 0) -> None:
        shape = (n_steps, len(first))
        self.observations = np.zeros((n_steps + 1, *first.shape), first.dtype)
        """Observations before every step and after the last, ``[T + 1, N, *O]``."""
        self.observations[0] = first
        self.rewards = np.zeros(shape)
        self.terminated, self.truncated, self.valid, self.begun = (np.zeros(shape, dtype=bool) for _ in range(4))
        self.life_lost = np.zeros(shape, dtype=bool)
        """``begun`` is true where the observation after a step is of the episode after the one that is counted."""
        self.episode, self.length = (np.zeros(shape, dtype=np.int64) for _ in range(2))
        """Number and length of the current episodes, before a step is counted."""
        self.actions: list[Array] = []
        self.behaviour: list[Distribution] = []
        self.executed: list[np.ndarray] = []
        self.infos: list[Infos] = []
        self.finals: dict[tuple[int, int], Tensor] = {}
        """The last observations of truncated episodes, by step and environment."""
        self.episodes: list[Episode] = []
        self._total_timesteps, self._at = total_timesteps, first_number

    def cut(self, t: int, lost: np.ndarray) -> None:
        """End the episodes that a step ``t`` has lost with the step before, in the last state that was seen."""
        if t > 0:
            going_on = lost & self.valid[t - 1] & ~self.terminated[t - 1] & ~self.truncated[t - 1]
            self.truncated[t - 1] |= going_on
            for i in np.flatnonzero(going_on).tolist():
                self.finals[t - 1, i] = torch.from_numpy(self.observations[t, i])

    def batch(self, told: Told) -> Batch:
        """Return everything as tensors; what the next rollout begins with has memory of its own."""
        observations = torch.from_numpy(self.observations)
        finals = [self.finals[where] for where in sorted(self.finals)]
        return Batch(
            observations=observations[:-1],
            actions=stack(self.actions),
            behaviour=stack_records(self.behaviour),
            rewards=torch.from_numpy(_in_float32(told.rewards(self.rewards))),
            terminated=torch.from_numpy(self.terminated | self.life_lost),
            truncated=torch.from_numpy(self.truncated),
            valid=torch.from_numpy(self.valid),
            next_observations=observations[-1].clone(),
            final_observations=torch.stack(finals) if finals else observations[0, :0].clone(),
            before_tanh=None if before_tanh(self.actions[0]) is None else stack([*map(before_tanh, self.actions)]),
            episodes=tuple(self.episodes),
            infos=tuple(self.infos),
        )

    def non_finite(self, locate: Callable[[tuple[int, ...]], str]) -> NonFinite | None:
        """Return the error for the first number that is not finite; ``None`` if all are.

        Args:
            locate: words for an index inside of an observation.
        """
        rewards, last = _in_float32(self.rewards), len(self.actions) - 1
        found = [
            *((last, _ACTION, *at) for action in self.actions[-1:] for at in not_finite(action)),
            *((t, _REWARD, *at) for t, *at in not_finite(rewards)),
            *((t, _OBSERVATION, *at) for t, *at in not_finite(self.observations[1:])),
            *((t, _FINAL, i, *at) for (t, i), final in self.finals.items() for at in not_finite(final)),
        ]
        if not found:
            return None
        t, kind, i, *inside = min(found)
        seen = {"observation": self.observations[t], "action": self.actions[t], "executed": self.executed[t]}
        if kind > _ACTION:
            seen["reward"] = rewards[t]
        if kind == _OBSERVATION:
            seen["next_observation"] = self.observations[t + 1]
        if kind == _FINAL:
            seen["final_observation"] = self.finals[t, i].unsqueeze(0)
        values = np.asarray(seen[("action", "reward", "next_observation", "final_observation")[kind]])
        where = locate(tuple(inside)) if kind >= _OBSERVATION else element(inside)
        begun = bool(kind == _OBSERVATION and self.begun[t, i])
        error = NonFinite.at(
            f"{_NAMES[kind]} of environment {self._at + i}{where}",
            values[(0 if kind == _FINAL else i, *inside)],
            0 if begun else self.length[t, i] + 1,
            self.episode[t, i] + begun,
            self._total_timesteps + int(np.count_nonzero(self.valid[:t])),
        )
        error.transition = {name: np.asarray(x).copy() for name, x in seen.items()} | {"environment": np.array(i)}
        return error


def not_finite(x: Array) -> list[list[int]]:
    """Return a list with the index of the first number that is not finite; an empty one if all are."""
    x = np.asarray(x)
    if x.dtype.kind != "f" or (finite := np.isfinite(x)).all():
        return []
    return np.argwhere(~finite)[:1].tolist()


def element(inside: list[int]) -> str:
    """Return words for an index inside of an action."""
    return f", element {inside}," if inside else ""


def _in_float32(rewards: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # infinite is refused
        return rewards.astype(np.float32)
