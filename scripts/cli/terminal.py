"""Printing of text with names in it, none of which can command the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from klrl.text import printable


class PlainConsole(Console):
    """Prints text unchanged: no markup, no emoji, nothing cut or highlighted, and only printable characters."""

    def __init__(self) -> None:
        super().__init__(highlight=False, soft_wrap=True, markup=False, emoji=False)

    def print(self, *objects: Any, **style: Any) -> None:
        """Print as Rich does, with text made :func:`printable`."""
        super().print(*(printable(x) if isinstance(x, str) else x for x in objects), **style)
