"""Small pieces of Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from klrl.words import cell


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Make a table; cells may hold Markdown, but no line breaks."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(map(cell, row))} |" for row in rows)])


def command(text: str) -> str:
    """Show a command line, broken before its options where it is long."""
    lines: list[str] = []
    for word in text.split():
        if not lines or (word.startswith("--") and len(lines[-1]) + len(word) > 60):
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return "```\n" + " \\\n    ".join(lines) + "\n```"


def listed(items: Sequence[str]) -> str:
    """Join words to ``a, b and c``."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else list(items))
