"""Variables by which torchrun tells a process that it is one of several, and how these fail; read without torch."""

from __future__ import annotations

import os

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class RankFailed(RuntimeError):
    """The training ended because of another process of it; the message says which, and of what."""

    seen_here = False
    """True if this process has found that out, and nobody else says so."""

    @classmethod
    def found(cls, line: str) -> RankFailed:
        """Return the error of a process that has found it out."""
        error = cls(line)
        error.seen_here = True
        return error


def is_rank() -> bool:
    """Tell whether torchrun, or somebody who sets the same variables, has started this process."""
    return all(name in os.environ for name in _VARIABLES)


def ranks() -> int:
    """Return the number of processes."""
    size = os.environ["WORLD_SIZE"] if is_rank() else "1"
    return int(size) if size.isdecimal() else 1


def is_restarted() -> bool:
    """Tell whether torchrun has started these processes in place of others that failed (``--max-restarts``)."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
