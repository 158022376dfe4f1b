"""Recipes of the how-to page on other libraries, from the files that ``make recipes`` runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sitegen.results import ROOT

RECIPES = ROOT / "docs" / "recipes"


def recipe(name: str) -> str:
    """Show the part of a file that does the measuring, with a link to the whole and the version it runs with."""
    text = (RECIPES / f"{name}.py").read_text(encoding="utf-8")
    code = text.partition("# [recipe]\n")[2].partition("# [end]")[0].strip("\n")
    pins = (RECIPES / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    pinned = ", ".join(f"`{pin}`" for pin in pins if pin)
    whole = f"Whole file: [docs/recipes/{name}.py](../recipes/{name}.py), run with {pinned}."
    return f"<!-- not run -->\n```python\n{code}\n```\n\n{whole}"


BLOCKS: dict[str, Callable[[], str]] = {
    f"recipe-{path.stem}": partial(recipe, path.stem) for path in sorted(RECIPES.glob("*.py"))
}
