"""Print text with names in it, none of which commands the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from klrl.text import printable


class PlainConsole(Console):
    """Prints text as it is: no markup, no emoji, nothing cut or highlighted, and only printable characters."""

    def __init__(self) -> None:
        super().__init__(highlight=False, soft_wrap=True, markup=False, emoji=False)

    def print(self, *objects: Any, **style: Any) -> None:
        """As Rich does, for text by way of :func:`printable`."""
        super().print(*(printable(x) if isinstance(x, str) else x for x in objects), **style)
