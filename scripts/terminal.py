"""Text with names in it, for a terminal and for Markdown: no name commands the one or breaks the other."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from klrl.words import one_line, printable


def cell(text: object) -> str:
    r"""One cell of a Markdown table, in which nothing ends the cell or is read as HTML.

    >>> cell("a|b <script>")
    'a\\|b &lt;script&gt;'
    """
    line = printable(one_line(text)).replace("\\", "\\\\").replace("|", "\\|")
    return line.replace("<", "&lt;").replace(">", "&gt;")


class PlainConsole(Console):
    """Prints text as it is: no markup, no emoji, nothing cut or highlighted, and only printable characters."""

    def __init__(self) -> None:
        super().__init__(highlight=False, soft_wrap=True, markup=False, emoji=False)

    def print(self, *objects: Any, **style: Any) -> None:
        """As Rich does, for text by way of :func:`printable`."""
        super().print(*(printable(x) if isinstance(x, str) else x for x in objects), **style)
