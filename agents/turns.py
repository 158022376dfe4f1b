"""Whose turn it is: an agent is in one training at a time, and some things wait until that is over."""

from __future__ import annotations

import threading


class Turn:
    """One training of an agent, in the thread that makes this; what it says is set as the training goes on."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.whole = True
        """Whether the agent is between two updates."""
        self.last = False
        """Whether there will be no more updates."""
        self.over = False
        """Whether the agent is free again: one assignment, which no signal can come into."""


class Turns:
    """Gives an agent to one training at a time, whichever threads and callbacks ask for it."""

    def __init__(self) -> None:
        self._now: Turn | None = None
        self._door = threading.RLock()  # a signal's handler may ask, too

    def begin(self, turn: Turn) -> None:
        """Take the agent until the turn is over.

        Raises:
            ValueError: another training has it.
        """
        with self._door:
            self.check("learn()")
            self._now = turn

    def check(self, what: str, *, after_last_update: bool = False) -> None:
        """Refuse something for the time of a training.

        Args:
            what: the user has called, for messages.
            after_last_update: whether it will do as soon as there are no more updates, in ``on_training_end``.

        Raises:
            ValueError: a training goes on.
        """
        now = self._now
        if now is not None and not now.over and not (after_last_update and now.last):
            where = "in one of its callbacks" if now.thread == threading.get_ident() else "in another thread"
            raise ValueError(f"{what} was called {where} while the agent learns; allowed: when learn() has returned")

    @property
    def between_updates(self) -> bool:
        """Whether the agent is whole, and will be until this thread goes on."""
        now = self._now
        return now is None or now.over or (now.whole and now.thread == threading.get_ident())
