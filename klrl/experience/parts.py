"""Batches in parts: as tensors and JSON that travel between processes, and joined to the batch of all environments."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from klrl.experience.batch import Batch, Episode
from klrl.experience.infos import Elsewhere, Infos

Tensors = dict[str, Tensor]
_ACROSS = ("observations", "actions", "rewards", "terminated", "truncated", "valid")
"""Fields ``[T, N, ...]``."""
_OPTIONAL = ("values", "before_tanh")
"""The same of some batches only."""
_EPISODES = "episodes"


def dismantled(batch: Batch, begin: int) -> Tensors:
    """Return everything but the infos as tensors: these stay where they are.

    Args:
        batch: steps of some environments.
        begin: the count of steps from which its episodes count theirs.
    """
    steps = batch.valid.sum(1).cumsum(0).numpy()
    ends = [[int(np.searchsorted(steps, e.total_timesteps - begin)), *_words(e)] for e in batch.episodes]
    tensors = {name: getattr(batch, name) for name in (*_ACROSS, "next_observations", "final_observations")}
    tensors |= {f"behaviour.{i}": x for i, x in enumerate(batch.behaviour.parameters)}
    tensors |= {name: x for name in _OPTIONAL if (x := getattr(batch, name)) is not None}
    return {name: torch.as_tensor(x) for name, x in tensors.items()} | {_EPISODES: as_tensor(ends)}


def joined(own: Batch, at: int, parts: Sequence[Tensors], begin: int) -> Batch:
    """Return the batch of all environments.

    Args:
        own: this process's batch, with its infos.
        at: number of its first environment.
        parts: everybody's tensors, in the order of the environments.
        begin: count of all environments' steps before the batch.
    """

    def across(name: str) -> Tensor:
        return torch.cat([part[name] for part in parts], 1)

    whole: dict[str, Any] = {name: across(name) for name in (*_ACROSS, *_OPTIONAL) if name in parts[0]}
    behaviour = own.behaviour.with_parameters(*(across(f"behaviour.{i}") for i in range(len(own.behaviour.parameters))))
    steps = begin + whole["valid"].sum(1).cumsum(0)
    n = whole["rewards"].shape[1]
    return Batch(
        **whole,
        behaviour=behaviour,
        next_observations=torch.cat([part["next_observations"] for part in parts]),
        final_observations=_finals(parts),
        episodes=tuple(_episodes(parts, steps.tolist())),
        infos=tuple(_all(infos, at, n) for infos in own.infos),
    )


def _finals(parts: Sequence[Tensors]) -> Tensor:
    """Return the last observations of truncated episodes, step by step and, in a step, environment by environment."""
    finals = torch.cat([part["final_observations"] for part in parts])
    steps = torch.cat([part["truncated"].nonzero()[:, 0] for part in parts])
    return finals[steps.argsort(stable=True)]


def _episodes(parts: Sequence[Tensors], steps: Sequence[int]) -> Iterator[Episode]:
    """Yield the episodes in the order in which one process would have seen them end."""
    first, found = 0, []
    for part in parts:
        found += [(t, first + i, rest) for t, i, *rest in from_tensor(part[_EPISODES])]
        first += part["rewards"].shape[1]
    for t, i, (episode_return, length, info) in sorted(found, key=lambda end: end[:2]):
        yield Episode(steps[t], episode_return, length, i, info)


def _words(episode: Episode) -> list[Any]:
    return [episode.env_index, episode.episode_return, episode.length, dict(episode.info)]


def _all(infos: Infos, at: int, n: int) -> Infos:
    return infos if len(infos) == n else Elsewhere(infos, at, n)


def as_tensor(words: Any) -> Tensor:
    """Return JSON as a tensor of bytes."""
    return torch.frombuffer(bytearray(json.dumps(words).encode()), dtype=torch.uint8)


def from_tensor(x: Tensor) -> Any:
    """Return what :func:`as_tensor` was given."""
    return json.loads(x.numpy().tobytes())
