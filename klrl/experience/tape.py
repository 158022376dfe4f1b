"""Recent actions of the environments, as far back as their current episodes reach."""

from __future__ import annotations

import numpy as np

from klrl.text import warn_user

MOST = 2**26
"""Largest size in bytes of the current episodes' actions: they are in memory and in every checkpoint."""


def warn_of_length(lengths: np.ndarray) -> None:
    """Warn that the actions of the current episodes are no longer kept, given their lengths."""
    warn_user(
        f"an episode of environment {lengths.argmax()} is {lengths.max():,} steps long: its actions are no "
        "longer kept; a training resumed from here begins new episodes, and differs from an uninterrupted one"
    )


class Tape:
    """The last actions of N environments; a row costs the same however many there are.

    Args:
        actions: actions so far, ``[T, N, *A]``.
    """

    def __init__(self, actions: np.ndarray | None = None) -> None:
        self._rows = np.zeros((0,)) if actions is None else actions
        self._begin, self._end = 0, len(self._rows)

    @property
    def actions(self) -> np.ndarray:
        """Rows that are kept, ``[T, N, *A]``: a view that does not change when more are added."""
        return self._rows[self._begin : self._end]

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
