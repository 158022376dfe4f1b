"""Independent random streams from one run seed (numpy's SeedSequence; the global generators are not touched)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Streams:
    """One private generator per purpose, so that drawing more from one never changes another."""

    networks: torch.Generator
    actions: torch.Generator
    minibatches: torch.Generator
    predictions: torch.Generator

    @classmethod
    def from_seed(cls, seed: int) -> Streams:
        """Make the streams of a run."""
        import torch

        names = [f.name for f in fields(cls)]
        children = np.random.SeedSequence(seed).spawn(len(names))
        return cls(*(torch.Generator().manual_seed(int(c.generate_state(1, np.uint64)[0]) >> 1) for c in children))

    def state(self) -> dict[str, torch.Tensor]:
        """Return every generator's state, by name (uint8)."""
        return {f.name: getattr(self, f.name).get_state() for f in fields(self)}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Continue where :meth:`state` was taken."""
        for f in fields(self):
            getattr(self, f.name).set_state(state[f.name])


_ENVIRONMENTS, _EVALUATION, _SEGMENTS = 1_000, 1_001, 1_002


def environment_seeds(seed: int, timesteps: int = 0) -> np.random.SeedSequence:
    """Return seeds for the training environments of a run, begun or continued after ``timesteps``."""
    return np.random.SeedSequence(seed, spawn_key=(_ENVIRONMENTS, timesteps))


def evaluation_seed(seed: int) -> int:
    """Return the seed of evaluation episodes: never one of the training environments'."""
    return int(np.random.SeedSequence(seed, spawn_key=(_EVALUATION,)).generate_state(1)[0])


def segment_seeds(seed: int, i: int) -> np.random.SeedSequence:
    """Return seeds for the ``i``-th group of starts of segments that are compared: the same at every call."""
    return np.random.SeedSequence(seed, spawn_key=(_SEGMENTS, i))
