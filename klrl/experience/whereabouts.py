"""Where environments are between two batches, in arrays: enough to go on from there in others of their kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from klrl.experience.episodes import Place


@dataclass(frozen=True, eq=False)
class Whereabouts:
    """The episodes that N environments are in; nothing here changes when they step on."""

    streams: np.ndarray
    """Seed of all episodes of each, ``[N]``."""
    episodes: np.ndarray
    """How many came before the current one, ``[N]``."""
    lengths: np.ndarray
    """Steps since its reset, ``[N]``."""
    returns: np.ndarray
    """Sum of its rewards, ``[N]``."""
    actions: Sequence[np.ndarray]
    """What was executed, in pieces ``[T, N, *A]``; altogether as far back as the longest episode goes, or fewer."""
    observation: Tensor | None = None
    """Where that led, as the policy is given it, ``[N, *O]``; ``None``: nobody has been there yet."""

    @classmethod
    def beginning(cls, streams: Sequence[int]) -> Whereabouts:
        """Before the first step of the first episodes."""
        n = len(streams)
        zeros = np.zeros(n, dtype=np.int64)
        return cls(np.array(streams, dtype=np.int64), zeros, zeros, np.zeros(n), ())

    @property
    def reachable(self) -> bool:
        """Whether all actions are there that lead to it: those of very long episodes are not kept."""
        return sum(map(len, self.actions)) >= self.lengths.max()

    def places(self) -> list[Place]:
        """The same, one environment at a time."""
        actions = np.concatenate(self.actions) if self.actions else np.zeros((0, len(self.lengths)))
        since = [actions[len(actions) - length :, i] for i, length in enumerate(self.lengths)]
        return [Place(int(s), int(e), tuple(a)) for s, e, a in zip(self.streams, self.episodes, since, strict=True)]

    def tensors(self) -> dict[str, Tensor]:
        """As they are saved."""
        numbers = {name: torch.from_numpy(getattr(self, name)) for name in _NUMBERS}
        longest = int(self.lengths.max()) if self.reachable else 0
        actions = {"actions": torch.from_numpy(np.concatenate(self.actions)[-longest:])} if longest else {}
        return numbers | actions | ({} if self.observation is None else {"observation": self.observation})

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Whereabouts:
        """The inverse of :meth:`tensors`."""
        numbers = {name: tensors[name].numpy() for name in _NUMBERS}
        actions = (tensors["actions"].numpy(),) if "actions" in tensors else ()
        return cls(**numbers, actions=actions, observation=tensors.get("observation"))


_NUMBERS = ("streams", "episodes", "lengths", "returns")
