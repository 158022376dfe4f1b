"""The page of ``klrl explore-kl``: one HTML file in the frame of klrl's reports, with their charts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib.resources import files
from itertools import count
from typing import Any

import klrl
from klrl.report.page import check_extra, library
from klrl.report.payload import safe_json
from klrl.scripts.explore.charts import Block, Demo, Formula, Table
from klrl.scripts.explore.contents import Section, rows

TITLE = "The KL divergence, seen"
SCRIPTS = ("live.js", "explore.js")


def page(sections: Sequence[Section], lead: str, command: str = "klrl explore-kl") -> str:
    """Return the page as HTML; nothing in it is loaded from anywhere.

    Raises:
        ValueError: the extra ``report`` is not installed.
    """
    check_extra()
    from jinja2 import ChoiceLoader, Environment, PackageLoader

    loader = ChoiceLoader([PackageLoader("klrl.scripts.explore", ""), PackageLoader("klrl.report", "")])
    env = Environment(loader=loader, autoescape=True, trim_blocks=False)
    reports, here = files("klrl.report"), files("klrl.scripts.explore")
    style = [(room / name).read_text(encoding="utf-8") for room, name in ((reports, "page.css"), (here, "explore.css"))]
    own = [(reports / "plots.js").read_text(encoding="utf-8")]
    own += [(here / name).read_text(encoding="utf-8") for name in SCRIPTS]
    demos = [block for section in sections for block in section.blocks if isinstance(block, Demo)]
    shown = partial(_shown, numbers=count())
    return env.get_template("explore.html").render(
        table=env.get_template("table.html").module.table,  # type: ignore[attr-defined]
        title=TITLE,
        lead=paragraphs(lead),
        version=klrl.__version__,
        style="\n".join(style),
        scripts=[*library(), *own],
        drawn=SCRIPTS,
        data=safe_json({"demos": [_data(demo) for demo in demos]}),
        sections=[_section(section, [*map(shown, section.blocks)]) for section in sections],
        numbers_rows=rows(sections),
        command=command,
    )


def paragraphs(text: str) -> list[str]:
    """Return paragraphs as HTML: blank lines part them, `code` and *terms* are marked, all else is text.

    >>> paragraphs("a < *b*")
    ['a &lt; <em>b</em>']
    """
    from markupsafe import escape

    parts = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip())]
    found = [re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(part))) for part in parts]
    return [re.sub(r"(?<![\w*])\*([^*<>]+)\*(?![\w*])", r"<em>\1</em>", part) for part in found]


def _section(section: Section, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    names = {name: getattr(section, name) for name in ("key", "title", "short")}
    return names | {"blocks": blocks, "identities": [*map(str, section.identities)]}


def _shown(block: Block, numbers: Any) -> dict[str, Any]:
    """Return what the template shows of a block; demonstrations are counted through the whole page."""
    if isinstance(block, str):
        return {"kind": "text", "paragraphs": paragraphs(block)}
    kind = {Formula: "formula", Table: "table", Demo: "demo"}[type(block)]
    said = {name: getattr(block, name) for name in vars(block)} | {"kind": kind}
    if isinstance(block, Demo):
        said |= {"number": next(numbers), "see": " ".join(paragraphs(block.see))}
    return said


def _data(demo: Demo) -> dict[str, Any]:
    """Return what the page's script reads of a demonstration."""
    found = asdict(demo)
    del found["see"]
    return found
