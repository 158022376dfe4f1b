"""Fills the generated blocks of README and pages: ``python docs/sitegen/blocks.py`` rewrites what is stale.

A block stands between ``<!-- generated: NAME -->`` and ``<!-- end generated -->``. Tables are kept in the pages, so
that they are read on a forge, too; the command line's reference is written only while the site is built.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
if str(DOCS) not in sys.path:  # when run as a program
    sys.path.insert(0, str(DOCS))

from sitegen import (  # noqa: E402
    asked_peers,
    bounds,
    cli,
    diagrams,
    evidence,
    lists,
    published,
    recipes,
    results,
    sb3_defaults,
    sequences,
    speed,
)

BLOCKS: dict[str, Callable[[], str]] = {
    **results.BLOCKS,
    **asked_peers.BLOCKS,
    **evidence.BLOCKS,
    **published.BLOCKS,
    **speed.BLOCKS,
    **lists.BLOCKS,
    **recipes.BLOCKS,
    **sb3_defaults.BLOCKS,
    **sequences.BLOCKS,
}
WHILE_BUILDING: dict[str, Callable[[], str]] = {"cli": cli.reference}
DRAWN = {**diagrams.DIAGRAMS, **asked_peers.DIAGRAMS, **bounds.DIAGRAMS}
FILES: dict[str, Callable[[], str]] = {f"_static/{name}.svg": draw for name, draw in DRAWN.items()}
BLOCK = re.compile(r"(<!-- generated: (\S+) -->\n).*?(<!-- end generated -->)", re.DOTALL)


def fill(text: str, blocks: dict[str, Callable[[], str]]) -> str:
    """Return a page with these blocks filled, and all others as they were."""

    def filled(match: re.Match[str]) -> str:
        begin, name, end = match.groups()
        return f"{begin}\n{blocks[name]()}\n\n{end}" if name in blocks else match[0]

    return BLOCK.sub(filled, text)


def current() -> dict[Path, str]:
    """Every page with a block and every generated file, as it should be.

    Raises:
        ValueError: a page asks for a block that nothing generates.
    """
    found = {DOCS / name: draw() for name, draw in FILES.items()}
    for page in [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]:
        text = page.read_text(encoding="utf-8")
        for _, name, _ in BLOCK.findall(text):
            if name not in BLOCKS | WHILE_BUILDING:
                raise ValueError(f"{page.name}: block {name!r}; allowed: {', '.join(BLOCKS | WHILE_BUILDING)}")
        if BLOCK.search(text):
            found[page] = fill(text, BLOCKS)
    return found


def main() -> None:
    """Rewrite what is stale."""
    for path, text in current().items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"rewritten: {path.relative_to(DOCS.parent)}")


if __name__ == "__main__":
    main()
