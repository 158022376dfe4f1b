"""The result of a rollout: a batch of steps, and the episodes that ended in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from klrl.experience.infos import Infos, numeric_keys
from klrl.policy.distributions import Distribution
from klrl.renamed import attribute
from klrl.shown import array, table
from klrl.text import nearest, plain, warn_user

T = TypeVar("T", Tensor, Distribution)


@dataclass(frozen=True)
class Episode:
    """A finished episode, as one row of ``episodes.csv``."""

    total_timesteps: int
    """Environment steps of the whole run when it ended."""
    episode_return: float
    """Sum of the environment's own rewards."""
    length: int
    env_index: int
    info: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Values of the agent's ``info_keys`` in the info of its last step; keys that were absent there are absent here."""


@dataclass(frozen=True, eq=False, repr=False)
class Batch:
    """T steps of N environments, time-major ``[T, N, ...]``; observations and rewards as the environment gave them.

    With the settings ``sign_of_rewards`` and ``life_is_episode`` rewards are signs, and the loss of a life is terminal.
    """

    observations: Tensor
    """Observations given to the policy, before normalisation, ``[T, N, *O]``."""
    actions: Tensor
    """The policy's actions (before clipping to a box or shifting to a start), ``[T, N, *A]``."""
    behaviour: Distribution
    """The distributions the actions were drawn from, ``[T, N]``."""
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    """False for steps that do not count: the reset steps of NEXT_STEP environments, and steps lost with a worker."""
    next_observations: Tensor
    """The observations after the last step, ``[N, *O]``."""
    final_observations: Tensor
    """The last observations of truncated episodes, ``[M, *O]``, in the order of ``truncated.nonzero()``."""
    episodes: tuple[Episode, ...] = ()
    """The episodes that ended in this batch."""
    infos: Sequence[Infos] = ()
    """``infos[t][i]`` is the dict that environment ``i`` gave with the result of step ``t``, whatever it holds.

    What cannot be sent from a worker process is in it as a text that says so.
    """
    before_tanh: Tensor | None = None
    """Numbers that squashed actions are the tanh of, ``[T, N, *A]``: near the border, actions no longer say which."""
    values: Tensor | None = None
    """The critic's values, in units of the scaled return, if acting has computed them beside the policy, ``[T, N]``."""

    def __repr__(self) -> str:
        """Size of the batch, and of what."""
        steps, envs = self.valid.shape
        arrays = f"observations={array(self.observations)}, actions={array(self.actions)}"
        policy = type(self.behaviour).__name__
        return f"Batch({steps} steps x {envs} envs, {arrays}, behaviour={policy}, {self._episodes})"

    def _repr_html_(self) -> str:
        """The same as a table for notebooks."""
        of = {"observations": self.observations, "actions": self.actions, "rewards": self.rewards}
        rows = [("steps x envs", "{} x {}".format(*self.valid.shape)), ("valid steps", self.n_samples)]
        rows += [(name, array(x)) for name, x in of.items()]
        return table("Batch", [*rows, ("behaviour", self.behaviour), ("ended", self._episodes)])

    @property
    def _episodes(self) -> str:
        """Number of episodes that ended, in words."""
        if not (n := len(self.episodes)):
            return "no episode ended"
        mean = sum(episode.episode_return for episode in self.episodes) / n
        return f"{n} episode{'s' if n > 1 else ''} of mean return {mean:.4g}"

    @property
    def ended(self) -> Tensor:
        """Mask of the steps that ended an episode, bool ``[T, N]``."""
        return self.terminated | self.truncated

    @cached_property
    def n_samples(self) -> int:
        """Number of valid steps."""
        return int(self.valid.sum())

    def flatten_valid(self, x: T) -> T:
        """Keep the valid steps of something time-major and merge its first two axes.

        ``[T, N, ...] -> [n_samples, ...]``, one step of all environments after the other.
        """
        if self.n_samples == self.valid.numel():
            return x.map(_merge) if isinstance(x, Distribution) else _merge(x)
        return x[self.valid]

    samples = attribute("Batch", "samples", "flatten_valid")

    def next_values(self, values: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
        """Return V of the state each step led to, ``[T, N]``, given V of the states it left.

        This is the value of the next row, of ``next_observations`` after the last, and of the final observation where
        an episode was truncated.
        """
        following = torch.cat([values[1:], value(self.next_observations).unsqueeze(0)])
        if len(self.final_observations):
            following[self.truncated] = value(self.final_observations)
        return following


def _merge(x: Tensor) -> Tensor:
    return x.flatten(0, 1)


def warn_of_absent(info_keys: Sequence[str], batch: Batch) -> None:
    """Warn of keys that no info at the end of a batch's episodes has, with those of numbers that are there."""
    absent = [key for key in info_keys if not any(key in episode.info for episode in batch.episodes)]
    if not absent:
        return
    ends = (batch.terminated | batch.truncated).nonzero().tolist()
    there = sorted({key for t, i in ends for key in numeric_keys(batch.infos[t][i])})
    words, known = ", ".join(map(repr, absent)), ", ".join(map(repr, there)) or "none"
    near = nearest(absent[0], there)
    warn_user(plain(f"info_keys = {words}: not in the last infos of the first episodes; numbers there: {known}{near}"))
