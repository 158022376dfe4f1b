"""Recent actions of the environments, as far back as their current episodes reach."""

from __future__ import annotations

import numpy as np

from klrl.text import warn_user

MOST = 2**26
"""Largest size in bytes of the current episodes' actions: they are in memory and in every checkpoint."""


class Tape:
    """The last actions of N environments; a row costs the same however many there are.

    Args:
        actions: actions so far, ``[T, N, *A]``.
    """

    def __init__(self, actions: np.ndarray | None = None) -> None:
        self._rows = np.zeros((0,)) if actions is None else actions
        self._begin, self._end = 0, len(self._rows)
        self._warned = False

    @property
    def actions(self) -> np.ndarray:
        """Rows that are kept, ``[T, N, *A]``: a view that does not change when more are added."""
        return self._rows[self._begin : self._end]

    def follow(self, actions: np.ndarray, lengths: np.ndarray) -> None:
        """Add rows, and keep those of the current episodes; none if these are too long, with a warning, once.

        Args:
            actions: those of a rollout, ``[T, N, *A]``.
            lengths: steps of the episodes at its end, ``[N]``.
        """
        longest = int(lengths.max())
        if longest * actions[0].nbytes <= MOST:
            self.add(actions, longest)
            return
        self._rows, self._begin, self._end = np.zeros((0,)), 0, 0
        if not self._warned:
            self._warned = True
            warn_user(
                f"an episode of environment {lengths.argmax()} is {longest:,} steps long: its actions are no "
                "longer kept; a training resumed from here begins new episodes, and differs from an uninterrupted one"
            )

    def add(self, actions: np.ndarray, keep: int) -> None:
        """Add rows, and keep the last ``keep`` of all."""
        if self._end + len(actions) > len(self._rows):
            old = self.actions[max(0, self._end - self._begin + len(actions) - keep) :]
            self._rows = np.zeros((2 * (len(old) + len(actions)), *actions.shape[1:]), actions.dtype)
            if len(old):
                self._rows[: len(old)] = old
            self._begin, self._end = 0, len(old)
        self._rows[self._end : self._end + len(actions)] = actions
        self._end += len(actions)
        self._begin = max(self._begin, self._end - keep)
