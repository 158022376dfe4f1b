"""Small pieces of Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from klrl.text import cell


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Make a table; cells may hold Markdown, but no line breaks."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(cell, row))} |" for row in rows)])


def command(text: str, width: int = 84) -> str:
    """Show a command line, broken where it is long, and rather before an option than among its values."""
    words, lines = text.split(), [""]
    for i, word in enumerate(words):
        values = list(takewhile(lambda other: not other.startswith("--"), words[i + 1 :]))
        wanted = " ".join([word, *values]) if word.startswith("--") else word
        if lines[-1] and len(lines[-1]) + len(wanted) > width and len(lines[-1]) > 8:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".lstrip()
    return "```\n" + " \\\n    ".join(lines) + "\n```"


def listed(items: Sequence[str]) -> str:
    """Join words to ``a, b and c``."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else list(items))
