"""Sphinx's extension for this site: equations as MathML, generated blocks, docstrings as plain text, nothing remote."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config
from sphinx.ext.napoleon.docstring import GoogleDocstring
from sphinx.util import logging

from sitegen.blocks import BLOCKS, WHILE_BUILDING, fill

logger = logging.getLogger(__name__)
REMOTE = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^\"]*\"")


def _mathml(node: Any, *, block: bool) -> str:
    try:
        found = tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        logger.warning("%s in %s", error, node.astext(), location=node)
        return ""
    found = re.sub("<mo>([‖∥])</mo>", r'<mo stretchy="false">\1</mo>', found)  # as high as letters
    return re.sub(r"(<mi>(?:log|exp|diag)</mi>)(?=\s*<mi>)", r'\1<mspace width="0.17em"/>', found)


def _inline(self: Any, node: nodes.math) -> None:
    self.body.append(_mathml(node, block=False))
    raise nodes.SkipNode


def _display(self: Any, node: nodes.math_block) -> None:
    self.body.append(f'<div class="equation">{_mathml(node, block=True)}</div>\n')
    raise nodes.SkipNode


_OUTSIDE = re.compile(r"\]\(((?:\.\./)+[^)\s#]+\.md)\)")


def read_source(app: Sphinx, docname: str, source: list[str]) -> None:
    """Fill a page's generated blocks; Markdown outside of the site is a file to open, not a page."""

    def link(match: re.Match[str]) -> str:
        target = (app.srcdir / docname).parent.joinpath(match[1]).resolve()
        return match[0] if target.is_relative_to(app.srcdir) else f"](path:{match[1]})"

    source[0] = _OUTSIDE.sub(link, fill(source[0], BLOCKS | WHILE_BUILDING))


_KEPT = re.compile(r"(``.+?``|:\w+(?::\w+)?:`[^`]+`|`[^`]+`_?|^\s*(?:>>>|\.\.\. ).*$)", re.MULTILINE)


def read_docstring(app: Sphinx, what: Any, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Read Google's sections; outside of literals, roles and examples ``*`` and ``|`` are no markup.

    Docstrings of attributes have no sections, and a colon in them ends no type.
    """
    parts = _KEPT.split("\n".join(lines))
    parts[::2] = [re.sub(r"(?<=\w)_(?!\w)|[*|]", r"\\\g<0>", part) for part in parts[::2]]
    text = "".join(parts).split("\n")
    sections = what not in ("attribute", "data", "property")
    settings: Any = Config()
    lines[:] = GoogleDocstring(text, settings, app, what, name, obj, options).lines() if sections else text


def read_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Show types as they are written; leave them out of classes, and the whole signature where it is many settings."""
    if signature is None or not callable(obj):
        return signature, returns
    found = inspect.signature(obj)
    written = [p for p in found.parameters.values() if p.name not in ("self", "cls")]
    if what in ("class", "exception"):
        if len(written) > 8:
            return "(**settings)", None
        written = [p.replace(annotation=p.empty) for p in written]
    shown = str(
        found.replace(
            parameters=[p.replace(annotation=_Written.of(p.annotation)) for p in written], return_annotation=found.empty
        )
    )
    back = None if what in ("class", "exception") or found.return_annotation is found.empty else found.return_annotation
    return shown.replace("<factory>", "..."), back if back is None else str(_Written.of(back))


class _Written(str):
    """An annotation that is shown without quotes."""

    @classmethod
    def of(cls, annotation: Any) -> Any:
        if annotation is inspect.Parameter.empty:
            return annotation
        return cls(annotation if isinstance(annotation, str) else inspect.formatannotation(annotation))

    __repr__ = str.__str__


def existing_name(app: Sphinx, env: Any, node: Any, contnode: nodes.Node) -> nodes.Node | None:
    """Names that are on no page: text. A dotted one must exist: where it does not, it is a warning, and so an error."""
    if node.get("refdomain") != "py":
        return None
    if "refexplicit" not in node or "." not in node["reftarget"]:  # of a signature, or a short one
        return contnode
    parts = node["reftarget"].split(".")
    for i in range(len(parts), 0, -1):
        try:
            found: Any = import_module(".".join(parts[:i]))
            for part in parts[i:]:
                found = getattr(found, part)
        except (ImportError, AttributeError):
            continue
        return contnode
    return None


def nothing_remote(app: Sphinx, error: Exception | None) -> None:
    """A page that loads something from the network is an error: the site is whole without one."""
    for page in Path(app.outdir).rglob("*.html") if error is None and app.builder.format == "html" else ():
        for tag in REMOTE.findall(page.read_text(encoding="utf-8")):
            logger.warning("%s loads %s", page.name, tag)


EXPLORED = "_static/explore-kl.html"
"""Where the site has the page of ``klrl explore-kl``, which is none of Sphinx's."""


def explored(app: Sphinx, error: Exception | None) -> None:
    """Write that page."""
    if error is not None or app.builder.format != "html":
        return
    from klrl.scripts.explore.page import page
    from klrl.scripts.explore.sections import LEAD, explore

    (Path(app.outdir) / EXPLORED).write_text(page(explore(0), LEAD), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_display, None))
    app.connect("source-read", read_source)
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("autodoc-process-signature", read_signature)
    app.connect("missing-reference", existing_name)
    app.connect("build-finished", explored)
    app.connect("build-finished", nothing_remote)
    return {"version": "1", "parallel_read_safe": True}
