"""Turns: an agent is in one training at a time, and some calls have to wait until it is over."""

from __future__ import annotations

import threading


class Turn:
    """One training of an agent, in the thread that makes this object; the training sets its attributes."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.whole = True
        """True between two updates."""
        self.last = False
        """True once there will be no more updates."""
        self.over = False
        """True once the agent is free again; a single assignment, which no signal can interrupt."""


class Turns:
    """Gives an agent to one training at a time, for any number of threads and callbacks."""

    def __init__(self) -> None:
        self._now: Turn | None = None
        self._door = threading.RLock()  # a signal handler may ask, too

    def begin(self, turn: Turn) -> None:
        """Take the agent until the turn is over.

        Raises:
            ValueError: another training has it.
        """
        with self._door:
            self.check("learn()")
            self._now = turn

    def check(self, what: str, *, after_last_update: bool = False) -> None:
        """Refuse a call during a training.

        Args:
            what: name of the call, for messages.
            after_last_update: allow it once there are no more updates, in ``on_training_end``.

        Raises:
            ValueError: a training goes on.
        """
        now = self._now
        if now is not None and not now.over and not (after_last_update and now.last):
            where = "in one of its callbacks" if now.thread == threading.get_ident() else "in another thread"
            raise ValueError(f"{what} was called {where} while the agent learns; allowed: when learn() has returned")

    @property
    def between_updates(self) -> bool:
        """True if the agent is between updates, and stays so until this thread goes on."""
        now = self._now
        return now is None or now.over or (now.whole and now.thread == threading.get_ident())
