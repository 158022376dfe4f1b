"""Whose turn it is: an agent is in one training at a time, and some things wait until that is over."""

from __future__ import annotations

import threading


class Turn:
    """One training of an agent, in the thread that makes this."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.whole = True
        """Whether the agent is between two updates."""
        self.over = False
        """Whether there will be no more of them."""


class Turns:
    """Gives an agent to one training at a time, whichever threads and callbacks ask for it."""

    def __init__(self) -> None:
        self._given: dict[str, Turn] = {}

    def begin(self, turn: Turn) -> None:
        """Take the agent; by one operation, which is done or not when a signal or another thread comes.

        Raises:
            ValueError: another training has it.
        """
        if self._given.setdefault("now", turn) is not turn:
            self.check("learn()")

    def end(self, turn: Turn) -> None:
        """Let the agent go, if it was taken."""
        if self._given.get("now") is turn:
            del self._given["now"]

    def check(self, what: str, *, after_last_update: bool = False) -> None:
        """Refuse something for the time of a training.

        Args:
            what: the user has called, for messages.
            after_last_update: whether it will do as soon as there are no more updates, in ``on_training_end``.

        Raises:
            ValueError: a training goes on.
        """
        now = self._given.get("now")
        if now is not None and not (after_last_update and now.over):
            where = "in one of its callbacks" if now.thread == threading.get_ident() else "in another thread"
            raise ValueError(f"{what} was called {where} while the agent learns; allowed: when learn() has returned")

    @property
    def between_updates(self) -> bool:
        """Whether the agent is whole, and will be until this thread goes on."""
        now = self._given.get("now")
        return now is None or (now.whole and now.thread == threading.get_ident())
