"""Positions of environments between two batches, as arrays: enough to continue there in other copies of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from klrl.experience.episodes import EpisodeCursor


@dataclass(frozen=True, eq=False)
class EnvCursor:
    """Positions of N environments in their episodes; a snapshot that does not change when they step on."""

    env_seeds: np.ndarray
    """Seed of each environment, from which those of its episodes derive, ``[N]``."""
    episodes: np.ndarray
    """Number of episodes before the current one, ``[N]``."""
    lengths: np.ndarray
    """Steps since the reset of the current episode, ``[N]``."""
    returns: np.ndarray
    """Sum of the current episode's rewards, ``[N]``."""
    actions: Sequence[np.ndarray]
    """Executed actions, in pieces ``[T, N, *A]``; together they reach back to the longest episode's reset, or not."""
    observation: Tensor | None = None
    """The observation reached, in the policy's form, ``[N, *O]``, or ``None`` before the first step."""

    @classmethod
    def beginning(cls, env_seeds: Sequence[int]) -> EnvCursor:
        """Return the cursor before the first step of the first episodes."""
        n = len(env_seeds)
        zeros = np.zeros(n, dtype=np.int64)
        return cls(np.array(env_seeds, dtype=np.int64), zeros, zeros, np.zeros(n), ())

    @property
    def reachable(self) -> bool:
        """True if all actions that lead here are known: those of very long episodes are dropped."""
        return sum(map(len, self.actions)) >= self.lengths.max()

    def rows(self, rows: slice) -> EnvCursor:
        """Return the cursor of some of the environments."""
        numbers = {name: getattr(self, name)[rows] for name in ("env_seeds", "episodes", "lengths", "returns")}
        here = None if self.observation is None else self.observation[rows]
        return EnvCursor(**numbers, actions=tuple(x[:, rows] for x in self.actions), observation=here)

    def episode_cursors(self) -> list[EpisodeCursor]:
        """Return one cursor per environment."""
        actions = np.concatenate(self.actions) if self.actions else np.zeros((0, len(self.lengths)))
        since = [actions[len(actions) - length :, i] for i, length in enumerate(self.lengths)]
        each = zip(self.env_seeds, self.episodes, since, self.returns, strict=True)
        return [EpisodeCursor(int(s), int(e), tuple(a), float(total)) for s, e, a, total in each]

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to save."""
        numbers = {name: torch.from_numpy(getattr(self, _FIELDS.get(name, name))) for name in _NUMBERS}
        longest = int(self.lengths.max()) if self.reachable else 0
        actions = {"actions": torch.from_numpy(np.concatenate(self.actions)[-longest:])} if longest else {}
        return numbers | actions | ({} if self.observation is None else {"observation": self.observation})

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], action: Sequence[int], observation: Sequence[int]) -> EnvCursor:
        """Restore what :meth:`tensors` returned.

        Args:
            tensors: saved tensors.
            action: shape of an environment's action.
            observation: shape of an environment's observation, as the policy gets it.

        Raises:
            ValueError: they do not fit environments with these shapes.
        """
        numbers = {name: tensors[name] for name in _NUMBERS}
        n, longest = len(numbers["streams"].reshape(-1)), 0
        for name, x in numbers.items():
            if (x.dtype, tuple(x.shape)) != (_NUMBERS[name], (n,)) or n == 0:
                raise ValueError(f"whereabouts.{name} is {x.dtype} {[*x.shape]}; allowed: {_NUMBERS[name]} [{n or 1}]")
            if not x.is_floating_point() and not ((x >= 0) & (x < 2**53)).all():
                raise ValueError(f"whereabouts.{name} has {x.min()} to {x.max()}; allowed: integers in [0, 2^53)")
        longest = int(numbers["lengths"].max())
        shapes = {"actions": (longest, n, *action), "observation": (n, *observation)}
        for name in shapes.keys() & tensors.keys():
            if tuple(tensors[name].shape) != shapes[name]:
                raise ValueError(f"whereabouts.{name} has shape {[*tensors[name].shape]}; allowed: {[*shapes[name]]}")
        actions = (tensors["actions"].numpy(),) if "actions" in tensors else ()
        arrays = {_FIELDS.get(name, name): x.numpy() for name, x in numbers.items()}
        return cls(**arrays, actions=actions, observation=tensors.get("observation"))


_NUMBERS = {"streams": torch.int64, "episodes": torch.int64, "lengths": torch.int64, "returns": torch.float64}
_FIELDS = {"streams": "env_seeds"}
"""Fields that files know by another name."""
