"""Environments split over processes: each steps its share, and all have the batches and the cursor of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from klrl.experience.batch import Batch
from klrl.experience.collector import Collector
from klrl.experience.cursors import EnvCursor
from klrl.experience.environments import is_seeded
from klrl.experience.parts import Tensors, dismantled, joined
from klrl.experience.tape import Tape

_COUNTERS = ("episodes", "lengths", "returns")


class Processes(Protocol):
    """Protocol of the processes that share environments (:class:`klrl.run.World`)."""

    def share(self, n: int) -> slice:
        """Return which of n environments are this process's."""

    def any(self, flag: bool) -> bool:
        """Tell whether the flag is true in one of the processes."""

    def exchange(self, tensors: Tensors) -> Sequence[Tensors]:
        """Return everybody's tensors, in the order of their shares."""


class Split:
    """N environments, of which this process has a share.

    Args:
        n: N.
        processes: those that share them.
    """

    def __init__(self, n: int, processes: Processes) -> None:
        self.n, self._processes = n, processes
        self._rows = processes.share(n)
        self.first = self._rows.start
        """Number of this process's first environment."""
        self.restarts = 0
        """Number of times a worker process was restarted, over all environments."""
        self._seeds = np.zeros(0, dtype=np.int64)
        self._tape = Tape()
        self.cursor: EnvCursor | None = None
        """Cursor of all environments after the last batch; ``None`` if their episodes cannot be played again."""

    def begin(self, cursor: EnvCursor, envs: VectorEnv) -> EnvCursor:
        """Return the share of a cursor of all environments, at which all processes begin.

        Args:
            cursor: the cursor.
            envs: this process's environments.
        """
        self._seeds = cursor.env_seeds
        self._tape = Tape(np.concatenate(cursor.actions) if cursor.actions else None)
        self.cursor = cursor if is_seeded(envs) else None
        return cursor.rows(self._rows)

    def fails(self, here: bool) -> bool:
        """Tell whether something failed in one of the processes."""
        return self._processes.any(here)

    def joined(self, batch: Batch, collector: Collector) -> Batch:
        """Return the batch of all environments, and count its steps.

        Args:
            batch: this process's batch.
            collector: what has collected it.
        """
        begin = collector.total_timesteps - int(batch.valid.sum())
        mine = dismantled(batch, begin)
        mine |= {f"cursor.{name}": torch.from_numpy(x) for name, x in collector.counters.items()}
        mine["cursor.executed"] = torch.from_numpy(np.array(collector.executed))
        mine["cursor.restarts"] = torch.tensor(collector.restarts, dtype=torch.int64, device="cpu")
        parts = self._processes.exchange(mine)
        whole = joined(batch, self._rows.start, parts, begin)
        collector.total_timesteps = begin + whole.n_samples
        self.restarts = sum(int(part["cursor.restarts"]) for part in parts)
        if self.cursor is not None:
            self._follow(parts, whole)
        return whole

    def _follow(self, parts: Sequence[Tensors], whole: Batch) -> None:
        """Move the cursor to the end of a batch."""
        numbers = {name: np.concatenate([part[f"cursor.{name}"].numpy() for part in parts]) for name in _COUNTERS}
        executed = np.concatenate([part["cursor.executed"].numpy() for part in parts], 1)
        self._tape.follow(executed, numbers["lengths"])
        actions = (self._tape.actions,) if len(self._tape.actions) else ()
        self.cursor = EnvCursor(env_seeds=self._seeds, **numbers, actions=actions, observation=whole.next_observations)
